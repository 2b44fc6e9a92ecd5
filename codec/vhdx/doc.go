// Package vhdx reads and lays out Microsoft VHDX disks, version 1: dynamic and
// fixed, with logical sectors of 512 or 4,096 bytes, and with a log that was
// not yet applied. Section numbers in this package are those of the open
// specification [MS-VHDX].
//
// All numbers are little-endian; a GUID has its first three fields
// little-endian too. Offsets and lengths of regions are multiples of 1 MiB.
//
//	0        file identifier: "vhdxfile", creator in UTF-16       (2.2.1)
//	64 KiB   header 1, 4 KiB: sequence, log GUID, log range       (2.2.2)
//	128 KiB  header 2, alike; the valid one with the higher sequence counts
//	192 KiB  region table 1, 64 KiB: where BAT and metadata are   (2.2.3)
//	256 KiB  region table 2, the same
//	1 MiB    from here, in any order and at any place:
//
//	log       ring of 4 KiB sectors, entries of page writes       (2.3)
//	BAT       8 bytes per payload block: state, offset in MiB     (2.5)
//	metadata  64 KiB table, then its items: block size, disk size,
//	          sector sizes, identity                              (2.6)
//	blocks    1 to 256 MiB each
//
// In the BAT one entry of a sector bitmap follows every chunk of payload
// entries, a chunk being what 2^23 sectors cover. Bitmaps matter to disks with
// a parent only, and those are refused.
//
// A log that is not empty has to be applied before anything else is believed:
// it may hold newer BAT entries than the BAT. Open applies it in memory, as
// pages that cover those of the file ([overlay]); the source is never written.
//
// A view is dynamic with an empty log:
//
//	0         identifier, headers with sequence 0 and 1, two region tables
//	1 MiB     log, 1 MiB of zeros
//	2 MiB     metadata, 1 MiB
//	3 MiB     BAT, its length rounded up to 1 MiB
//	behind    the allocated blocks in guest order, each whole
//
// Blocks are 2 MiB up to a disk of 2 TiB and 32 MiB above, sectors 512 bytes
// logical and 4,096 physical. Both regions are marked as required: VirtualBox
// refuses a file without it.
package vhdx

import "imagefs/codec"

// Format is VHDX.
var Format codec.Format = format{}

type format struct{}

func (format) Name() string { return "vhdx" }

// Probe knows the file identifier (2.2.1).
func (format) Probe(head, _ []byte) bool {
	return len(head) >= len(identifier) && string(head[:len(identifier)]) == identifier
}
