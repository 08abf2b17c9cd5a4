// Package dkim signs finished messages (RFC 6376, RFC 8301) and knows the DNS record by which
// a receiver checks the signature.
//
// It promises
//   - the same message, key and time give the same signature: RSA with PKCS #1 v1.5 uses no
//     chance;
//   - a message is signed as it is and never changed, so that it can be hashed in pieces, of
//     which many mails share most;
//   - a signature costs one RSA operation, and one reading of the message.
//
// The algorithm is rsa-sha256, header and body are relaxed: relays may fold a header anew and
// drop blanks at the end of a line. From is signed once more than it is there, so that nobody
// can put a second one in front of it (RFC 6376 8.15).
//
// It does not verify, ask a name server, or store a key. The verifiers of its tests are
// programs of others.
package dkim
