// Xen Orchestra's client against a xapi: node xen-api.mjs URL TRANSPORT NODE_MODULES [calls-only]
//
// URL has the credentials (http://root:xapi@127.0.0.1:8080), TRANSPORT is auto, json-rpc or xml-rpc, NODE_MODULES the
// directory where npm put xen-api; with calls-only nothing is imported or exported. Prints one line of JSON.
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const [url, transport, modules, limit] = process.argv.slice(2)
const { Xapi } = await import(pathToFileURL(join(modules, 'xen-api', 'index.mjs')))

const xapi = new Xapi({ url, transport, allowUnauthorized: true, debounce: 0 })
const seen = (ref, condition) =>
  new Promise(resolve => {
    const look = () => condition(xapi.getObjectByRef(ref)) && resolve()
    xapi.objects.on('update', look)
  })

await xapi.connect()
await xapi.objectsFetched
const first = xapi.sessionId
const vm = Object.values(xapi.objects.all).find(object => object.$type === 'VM' && object.name_label === 'vm1')

const label = `seen ${transport} ${process.pid}`
const event = seen(vm.$ref, object => object.name_description === label)
await vm.set_name_description(label)
await event

await xapi.callAsync('VM.start', vm.$ref, false, false)
await xapi.callAsync('VM.hard_shutdown', vm.$ref)
const failed = await xapi.call('VM.pause', vm.$ref).catch(error => error)
await xapi.setFieldEntry('VM', vm.$ref, 'other_config', 'client', transport)
await xapi.barrier()

let data = Buffer.alloc(0)
if (limit !== 'calls-only') {
  const download = await xapi.getResource('/export', { query: { bytes: 1000000 } })
  data = Buffer.from(await download.body.arrayBuffer())
  await download.task
  await xapi.putResource(data, '/import')
}

await xapi._call('session.logout', [first])
// Its own watcher may be logging in anew: for that moment it has no session, and asserts that it has one.
const again = call =>
  call().catch(error => {
    if (error.code !== 'ERR_ASSERTION') throw error
    return new Promise(resolve => setTimeout(resolve, 10)).then(() => again(call))
  })
const { memory_static_max: memory } = await again(() => xapi.getRecord('VM', vm.$ref))

console.log(
  JSON.stringify({
    client: `xen-api ${transport}`,
    login: first.startsWith('OpaqueRef:'),
    pool: xapi.pool.name_label,
    objects: Object.keys(xapi.objects.all).length,
    record: { uuid: vm.uuid, name_label: vm.name_label, memory: String(memory), power_state: vm.power_state },
    event: xapi.getObjectByRef(vm.$ref).name_description === label,
    streamed: data.length,
    error: [failed.code, ...failed.params],
    relogin: xapi.sessionId !== first,
  })
)
await xapi._call('session.logout', [xapi.sessionId])
process.exit(0) // it would go on asking for events
