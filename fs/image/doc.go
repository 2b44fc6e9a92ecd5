// Package image opens the disks of a catalog and shares what it opened.
//
// A [Disk] is one stored version of a disk, opened once however many files,
// handles and formats use it: its source behind the block cache, its guest
// bytes behind a cache of decoded blocks when decoding costs, and its
// allocation map, from which every view's size and place follow. A [File] is
// the disk in one format: the stored bytes in the format it was stored in, a
// layout in every other.
//
// Everything is immutable per version. The package knows nothing of FUSE.
package image
