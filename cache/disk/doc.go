// Package disk keeps pieces of immutable things in a folder, beyond memory and
// beyond the process.
//
// It is a tier under the memory of package cache, for bytes that are slow to get
// again. It knows nothing of what they mean or where they come from.
//
// # Files
//
//	DIR/CACHEDIR.TAG         tells backup programs to leave the folder out
//	DIR/blocks/5f/0c31...    one chunk: a header of 4 KiB, then its units
//	DIR/blocks/new           the chunk being made; renamed when it is whole
//
// What is kept or not is a unit, 64 KiB of an object; a file is for a chunk of it,
// 16 neighbouring units. So readers at random places cost no more than they read,
// and a large cache no more files than one for each MiB. Units come into a chunk's
// file in the order in which they are saved, and the header says where they lie: the
// length of a file is what it takes, and neighbours that were saved together are
// read together.
//
// A chunk's name is a hash of the layout of its file and of its identity (whose
// store, which object, which version of it, its size, the offset), so that a lookup
// opens one file, whatever their number, and nothing is read when the folder is
// opened. Files of an earlier layout, with a header of 64 bytes and one block of
// 1 MiB, have other names and are never read: they count, and are evicted as what
// was not used for longest. The header repeats the identity, and holds the CRC-32C
// of each unit and of itself.
//
// # Damage
//
// A unit that does not match its checksum counts as absent, and is forgotten; a
// header that does not match is a chunk that is absent, and its file is removed. A
// unit is written where no other lies, and the header that names it after that, so
// that a process can be killed at any moment. Nothing is synced: after a crash of
// the system the checksums tell what reached the disk.
//
// # Contract
//
// [Object.Load] reads in the caller's goroutine. [Object.Save] never waits: units
// are queued, up to [Config.Queue] bytes, and dropped when there are more; one
// goroutine writes, counts and evicts. Every error of the disk means "not kept" to
// the caller, is counted, and reaches [Config.Report] at most once a minute.
//
// One process at a time uses a folder: it holds a lock (flock) on it. Inside it one
// goroutine writes, and readers take no lock: one that finds a header that does not
// match looks at it again under Cache.heading, which is held while one is written.
//
// # Room
//
// Chunks take up to [Config.Size] bytes, and leave free what is less of 5 % of the
// file system and 1 GiB. That is looked at before each write, and every ten seconds
// for what other programs write. What the folder holds is counted behind; until
// that is done nothing is written.
//
// Eviction takes the folders of chunks in turn, at least 256 chunks at a time, and
// removes the eighth of them that was not used for longest. As names are hashes,
// each folder is a fair sample of all chunks. A use is the file's time of
// modification: that of the last unit that came, or set anew at most once a minute.
package disk
