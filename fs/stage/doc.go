// Package stage turns files that are copied in into images.
//
// A [Spool] holds them in a folder of the local disk, one folder per file with
// its bytes, sparse as they were written, and a small JSON of what it is. Each
// is in one state, which survives the end of the process at any moment:
//
//	writing    open for writing, or left unfinished; nothing is promised
//	sealed     complete and checked; only the store has to take it
//	uploading  the object named in the JSON may be in the store, in part or whole
//	refused    looked at and not taken; the reason is in the JSON
//
// A file leaves the spool when the catalog names its object. What a dead
// process left is taken over by the next spool in the same folder: writing and
// refused files are shown again, sealed and uploading ones are taken up where
// a repeated step does no harm, under a new object name.
//
// An [Importer] is the way of one file from bytes to a catalog entry: detect
// by content, validate with every bound checked, upload, commit. It serves the
// spool and the command line alike.
//
// The package knows nothing of FUSE; package fs gives its files nodes.
package stage
