# Ruby's XML-RPC client against a xapi: ruby xmlrpc.rb URL, with credentials in the URL (http://root:xapi@127.0.0.1:8080).
# Prints one line of JSON. This client knows no sessions, so it logs in again by hand.
require "json"
require "uri"
require "xmlrpc/client"

uri = URI.parse(ARGV.fetch(0))
server = XMLRPC::Client.new3(host: uri.host, port: uri.port, path: "/RPC2")
login = lambda do
  server.call("session.login_with_password", uri.user, uri.password, "1.0", "xmlrpc.rb").fetch("Value")
end
session = login.call
vm = server.call("VM.get_by_name_label", session, "vm1").fetch("Value").first
record = server.call("VM.get_record", session, vm).fetch("Value")
token = server.call("event.from", session, ["vm/#{vm}"], "", 1.0).fetch("Value").fetch("token")
server.call("VM.set_name_description", session, vm, "seen by ruby #{Process.pid}")
news = server.call("event.from", session, ["vm/#{vm}"], token, 30.0).fetch("Value")
failed = server.call("VM.pause", session, vm)
methods = server.call("system.listMethods")
server.call("session.logout", session)
refused = server.call("VM.get_record", session, vm).fetch("ErrorDescription").first

puts JSON.generate(
  client: "ruby xmlrpc",
  login: session.start_with?("OpaqueRef:"),
  record: { uuid: record["uuid"], name_label: record["name_label"], memory: record["memory_static_max"],
            power_state: record["power_state"] },
  methods: methods.length,
  event: news["events"].any? { |event| event["snapshot"]["name_description"].start_with?("seen by ruby") },
  counts: news["valid_ref_counts"],
  time: record["snapshot_time"].to_a,
  error: failed["ErrorDescription"],
  invalid: refused,
  relogin: login.call != session
)
