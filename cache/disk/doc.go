// Package disk keeps blocks of immutable things in a folder, beyond memory and
// beyond the process.
//
// It is a tier under the memory of package cache, for bytes that are slow to get
// again. It knows nothing of what they mean or where they come from.
//
// # Files
//
//	DIR/CACHEDIR.TAG         tells backup programs to leave the folder out
//	DIR/blocks/5f/0c31...    one block: a header of 64 bytes, then its bytes
//	DIR/blocks/new           the block being written; renamed when it is whole
//
// A block's name is a hash of its identity (whose store, which object, which
// version of it, its size, the offset), so that a lookup opens one file, whatever
// the number of blocks, and nothing is read when the folder is opened. The header
// repeats the identity and holds the CRC-32C of the bytes; what does not match in
// any way is removed and counts as absent. Nothing is synced: after a crash the
// checksum tells which blocks reached the disk.
//
// # Contract
//
// [Object.Load] reads in the caller's goroutine. [Object.Save] never waits: blocks
// are queued, up to [Config.Queue] bytes, and dropped when there are more; one
// goroutine writes, counts and evicts. Every error of the disk means "not kept" to
// the caller, is counted, and reaches [Config.Report] at most once a minute.
//
// One process at a time uses a folder: it holds a lock (flock) on it.
//
// # Room
//
// Blocks take up to [Config.Size] bytes, and leave free what is less of 5 % of the
// file system and 1 GiB. That is looked at before each write, and every ten seconds
// for what other programs write. What the folder holds is counted behind; until
// that is done nothing is written.
//
// Eviction takes the folders of blocks in turn, at least 256 blocks at a time, and
// removes the eighth of them that was not used for longest. As names are hashes,
// each folder is a fair sample of all blocks. A use is the file's time of
// modification, set anew at most once a minute.
package disk
