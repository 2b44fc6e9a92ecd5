// Package dir is an object store in a local directory: the store that needs
// no server, no port and no credentials.
//
// A key is a path below the directory, one object is one regular file, and
// every file in it is an object: images may be copied in and out with any
// tool. Names that begin with a dot are not listed. Temporary and lock files
// of the store bear such names, with the prefix ".imagefs-", which no key may
// use for itself. Nothing outside the directory is ever reached: symbolic
// links are followed only where they are relative and stay inside.
//
// # Writes
//
// A Put writes a temporary file beside the key, syncs it and then makes it
// visible in one step: link(2) for a create-only put, so that of several
// writers exactly one wins, rename(2) otherwise. Steps that replace or remove
// an object hold an flock(2) on one lock file in the directory, which makes
// compare-and-swap atomic between processes of one machine. The folder is
// synced before Put returns. A process that is killed may leave a temporary
// file behind; later puts into the same folder remove those older than a day.
//
// An upload is such a file too, which takes parts at their places and becomes
// the object by link(2). Its name ends in the last segment of its key: one that
// was left behind is found and removed by AbortUploads, and by nothing else.
// Blocks of zeros are not written, so that they take no space.
//
// # Versions
//
// The ETag is made of size, modification time and inode number. The store
// gives each file it writes a modification time of nanosecond resolution, so
// that two puts never share an ETag. A file that another program modifies in
// place is noticed by its size and time, within the file system's time
// resolution; a program that also resets the time goes unnoticed.
//
// # Reads
//
// ReadRange keeps the files it read from open, at most 128 of them. A version
// that is open stays readable after it was replaced or deleted, as long as no
// other program modifies it in place. A hit is one pread(2) and one fstat(2):
// no allocation, and no lock held while reading. The space of a deleted object
// that is still open comes back when it leaves that set or at Close.
package dir
