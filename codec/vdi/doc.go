// Package vdi is VirtualBox's disk image, version 1.1. All fields are
// little-endian.
//
//	0      text, 64 bytes, free
//	64     signature 0xBEDA107F
//	68     version 0x00010001
//	72     size of the header from here: 400, older writers 384
//	76     type: 1 dynamic, 2 fixed, 3 undo, 4 differencing
//	80     flags, then a comment of 256 bytes
//	340    offBlocks: where the block map lies
//	344    offData: where block 0 of the file lies
//	348    legacy geometry: cylinders, heads, sectors, sector size
//	368    disk size, 8 bytes
//	376    block size
//	380    extra bytes before each block
//	384    entries of the block map
//	388    allocated blocks
//	392    UUIDs: create, modify, parent, parent's modify
//	456    geometry as the BIOS sees it
//	offBlocks  the block map: per guest block 4 bytes, the number of the block
//	       in the file, or all ones for none, all ones less one for zeros
//	offData    blocks, each block size + extra bytes
//
// The layout is a dynamic image in blocks of 1 MiB, allocated ones in guest
// order; map and data begin at multiples of 1 MiB as VirtualBox has them.
//
// The format is specified by its implementation: the structures VDIPREHEADER
// and VDIHEADER1PLUS of VirtualBox (VDICore.h) and the comment at the start of
// QEMU's block/vdi.c.
package vdi
