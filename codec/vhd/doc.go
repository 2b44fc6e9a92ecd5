// Package vhd is Microsoft's virtual hard disk, version 1.0: the .vhd of
// Virtual PC, Hyper-V and Azure. All fields are big-endian.
//
// A fixed disk is the guest's bytes and then the footer. A dynamic disk:
//
//	0      a copy of the footer, 512 bytes
//	       the dynamic header, 1024 bytes, where the footer's data offset says
//	       the block allocation table (BAT), where the header's table offset
//	       says: per guest block 4 bytes, its sector in the file, all ones
//	       for none
//	       blocks: a bitmap, one bit per sector, the highest bit first, filled
//	       up to a sector, and then the data. A sector whose bit is clear was
//	       never written: zeros
//	-512   the footer; -511 in files of very old writers
//
// The footer:
//
//	0      cookie "conectix"
//	8      features, version 0x00010000
//	16     data offset: of the dynamic header, all ones for a fixed disk
//	24     time, seconds since 2000; creator, its version and host
//	40     original size, current size, 8 bytes each
//	56     cylinders, heads, sectors per track
//	60     type: 2 fixed, 3 dynamic, 4 differencing
//	64     checksum: the complement of the sum of all bytes but these four
//	68     UUID, in plain byte order
//	84     1 when a suspended guest's state belongs to the disk
//
// The dynamic header:
//
//	0      cookie "cxsparse"
//	8      all ones; table offset at 16, version 0x00010000 at 24
//	28     entries of the BAT, block size at 32, checksum at 36
//	40     parent: UUID, time, and from 64 its name in UTF-16
//
// The size of the disk is always the current size. Readers that compute it of
// cylinders, heads and sectors do so by the creator: "win " is the one that all
// of them take the current size for.
//
// The layout is a dynamic disk in blocks of 2 MiB, allocated ones in guest
// order, every bit of a bitmap set. Shown as fixed.vhd is a fixed disk, rounded
// up to whole MiB as Azure wants it.
//
// The format is specified in Microsoft's "Virtual Hard Disk Image Format
// Specification" of 2006: "Hard Disk Footer Format", "Dynamic Disk Header
// Format", "Block Allocation Table and Data Blocks", and for the geometry the
// appendix "CHS Calculation".
package vhd
