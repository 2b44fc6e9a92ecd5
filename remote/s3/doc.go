// Package s3 is an object store in a bucket of an S3 server: Amazon's or any
// other that speaks its protocol.
//
// # Reads
//
// Every read is one range request that names the ETag it is pinned to, and
// what comes back is believed only if its ETag, range and length are those
// asked for. A body that is cut, or stalls, is resumed at the missing byte.
//
// # Writes
//
// A conditional put is one request with If-None-Match or If-Match, whatever
// its size: some servers ignore conditions on the completion of a multipart
// upload. Unconditional puts above 64 MiB are multipart uploads. Each put
// carries a random mark in its user metadata: when the answer to a request was
// lost and its repetition is refused, the mark tells whether the first one
// had won. What was stored is asked for afterwards, and its size checked.
//
// # Checksums
//
// A server has to confirm the bytes of each part. One that knows CRC-32C is
// asked for it when an upload begins. Parts are read for it first, then sent
// with it, and believed stored when it comes back: a deliberately wrong one has
// shown before, once for a store, that the server compares it. The source may
// change between the two readings: then the server refuses the part. Composite
// CRCs, or ETags of the usual form, the MD5 of the parts' ETags and their
// number, are compared at the end.
//
// For other servers MD5s are computed while parts are sent, which takes most of
// an upload's time. Mostly a part's ETag is its MD5. Where it is not, as for
// encrypted parts, the part is sent again with Content-MD5, once a wrong one has
// shown that the server checks it; from then on parts are read twice. What is
// not confirmed is sent three times, then it is an error.
//
// Objects in one request carry a CRC-32C too, unless their source can be read
// only once. Servers that do not know it are not asked again.
//
// # Uploads
//
// Completion is not conditional: an upload looks before whether its key is
// taken. Servers that want all parts of one size (R2) refuse uploads of more
// than remote.PartOffset(1001) bytes.
//
// # Retries
//
// The client below never retries; this package does, in one place, with
// growing random pauses: errors of the connection, statuses that ask for it
// (429, 500, 502, 503, 504), cut bodies, stalls. An operation ends when it had
// no progress for Config.Budget: progress is the delivery of a further 64 KiB
// or of the rest. What will not go away (403, 404, 412) is returned at once.
//
// # Credentials
//
// They come from, in this order: Config, the environment, the shared
// credentials file and its profiles, a web identity or container endpoint
// named by the environment, the metadata service of the machine. They are
// fetched again before they expire and after a server refused them.
//
// # Memory
//
// A put from a reader that can neither seek nor be read at offsets holds up to
// four parts of 16 MiB, or the whole body up to 64 MiB where that goes into
// one request. Other puts, parts of uploads and reads hold nothing beyond the
// caller's buffer and the buffers of connections. Without TLS the kernel sends
// files; what else is sent or summed goes through buffers of 256 KiB.
package s3
