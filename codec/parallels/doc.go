// Package parallels reads the expandable disk image of Parallels, a file
// .hdd or .hds. All fields are little-endian.
//
//	0   magic "WithoutFreeSpace", or "WithouFreSpacExt" for large disks
//	16  version 2
//	20  heads, cylinders, 4 bytes each
//	28  sectors of a cluster
//	32  entries of the block allocation table (BAT)
//	36  sectors of the disk, 8 bytes, of which the first magic has 4
//	44  in use: 0x746F6E59 open or not closed cleanly, 0x312E3276 closed
//	48  sector where clusters begin, then flags
//	56  sector of the format extension, 8 bytes, 0 for none
//	64  the BAT: per guest cluster 4 bytes, 0 for none, else its sector in the
//	    file, with the second magic the number of the cluster in the file
//
// The format extension is a cluster of features, such as dirty bitmaps:
//
//	0   magic 0xAB234CEF23DCEA87, then a checksum of 16 bytes
//	24  features: magic, flags, 8 bytes each, length of the data, 4 bytes of
//	    padding, the data up to a multiple of 8; a magic of 0 ends them
//
// A cluster is usually 1 MiB. Old writers made it of a number of sectors that
// is no power of two.
//
// The format is specified in QEMU's docs/interop/parallels.rst. Nothing is laid
// out in it.
package parallels
