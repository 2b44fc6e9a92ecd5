// Package fs shows a catalog as a FUSE file system.
//
//	images/NAME/disk0.EXT   one file per disk and format
//	images/NAME/image.json  the image's catalog entry
//	images/NAME/error       why the image, or a part of it, cannot be shown
//	by-format/EXT/NAME-0.EXT
//	by-id/UUID              symbolic link to ../images/NAME
//	.imagefs/               version, config, stats, errors, uploads: found by name, not listed
//
// Nodes are thin: they translate a request, call fs/image or remote/catalog
// and turn one error into one number ([Errno] is the only table). A file's
// inode number is derived from its disk's version and format, so the same
// bytes have the same number on every mount, and a replaced image has another.
// Disks never change, so the kernel keeps their pages and attributes; names
// are believed for a second, the time a replaced image takes to show.
//
// Requests do not follow their interruption: programs whose runtime signals
// its own threads interrupt requests all the time, and a call that fails with
// EINTR breaks those that do not expect it on a file. What bounds a request is
// the store's time limit, after which it fails with EIO.
//
// Files are written through fs/stage, which holds them until they are images;
// write.go says what can be written. A mount without a spool is read-only, and
// every operation that would change something answers EROFS.
//
// Lock order: go-fuse's own locks, then those of image, stage and catalog; no
// method here holds a lock over a call of any.
package fs
