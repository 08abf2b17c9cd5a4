'use strict';
// Sends an invoice in php mode and says what became of every recipient. Exit codes: 0 everybody
// was accepted, 1 somebody was not, 2 the call was refused, 3 the outcome is unknown, 4 the
// service was not heard in time.

const fs = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const set = path.join(__dirname, '../../../proto/maildispatch.binpb');
// Names stay as the schema writes them; protobufjs passes over a name that it does not know.
const schema = loader.loadFileDescriptorSetFromBuffer(fs.readFileSync(set), { longs: String, enums: String, defaults: true, oneofs: true });
const { Dispatch } = grpc.loadPackageDefinition(schema).maildispatch.v1;

// Nobody knows what became of these calls. The same request id attaches to the same mail, so they
// are made again; it never makes a second one.
const again = new Set([grpc.status.UNAVAILABLE, grpc.status.RESOURCE_EXHAUSTED, grpc.status.ABORTED]);

// trailer is a plain trailer of a failed call; it repeats what stands in grpc-status-details-bin.
const trailer = (error, name) => String(error.metadata?.get(name)[0] ?? '');

// once makes the call and gives the mail as the journal has it at the end.
function once(client, request, metadata, deadline) {
  return new Promise((resolve, reject) => {
    let mail;
    client.Send(request, metadata, { deadline })
      .on('data', (event) => {
        if (event.accepted?.duplicate) console.error(`${event.mail_id}: it was accepted before, this is its story`);
        if (event.completed) mail = event.completed.mail;
      })
      .on('error', reject)
      .on('end', () => (mail ? resolve(mail) : reject(new Error('the service ended the call without its last event'))));
  });
}

async function send(client, request, metadata, giveUp) {
  for (let pause = 100; ; pause = Math.min(2 * pause, 5000)) {
    try {
      return await once(client, request, metadata, giveUp);
    } catch (error) {
      const wait = Math.max(pause, Number(trailer(error, 'maildispatch-retry-after-ms')));
      if (!again.has(error.code) || Date.now() + wait > giveUp) throw error;
      await new Promise((done) => setTimeout(done, wait));
    }
  }
}

async function main() {
  const { values: args } = parseArgs({
    options: {
      address: { type: 'string', default: '127.0.0.1:50051' },
      // file with the certificate authority; without it the connection is plain
      ca: { type: 'string' },
      'token-file': { type: 'string' },
      team: { type: 'string', default: '' },
      to: { type: 'string', multiple: true },
      reference: { type: 'string' },
      'request-id': { type: 'string' }, // kept with the invoice: a repeat of it sends nothing twice
      timeout: { type: 'string', default: '60' }, // seconds
    },
  });
  const metadata = new grpc.Metadata();
  if (args['token-file']) metadata.set('authorization', `Bearer ${fs.readFileSync(args['token-file'], 'ascii').trim()}`);
  const credentials = args.ca ? grpc.credentials.createSsl(fs.readFileSync(args.ca)) : grpc.credentials.createInsecure();
  const client = new Dispatch(args.address, credentials);
  const request = {
    request_id: args['request-id'],
    options: { team: args.team, kind: 'KIND_INVOICE', reference: args.reference },
    message: { to: args.to, subject: `Invoice ${args.reference}`, text: 'Please find your invoice enclosed.' },
  };
  try {
    const mail = await send(client, request, metadata, Date.now() + 1000 * Number(args.timeout));
    for (const r of mail.recipients) console.log(`${r.address}: ${r.status} ${r.failure} ${r.smtp_code} ${r.detail} ${r.hint}`.trimEnd());
    if (mail.recipients.some((r) => r.status === 'STATUS_UNKNOWN')) return 3;
    return mail.recipients.every((r) => r.status === 'STATUS_ACCEPTED') ? 0 : 1;
  } catch (error) {
    if (error.code === undefined) throw error;
    console.error(`${grpc.status[error.code]} ${trailer(error, 'maildispatch-reason')}: ${error.details}`);
    return again.has(error.code) || error.code === grpc.status.DEADLINE_EXCEEDED ? 4 : 2;
  } finally {
    client.close();
  }
}

main().then((code) => process.exit(code));
