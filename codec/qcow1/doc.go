// Package qcow1 reads the first version of QEMU's copy-on-write format. All
// fields are big-endian.
//
//	0   magic "QFI\xfb"
//	4   version 1
//	8   backing file: 8 bytes its name's place, 4 its length, 4 its time
//	24  size of the disk, 8 bytes
//	32  cluster_bits, 1 byte
//	33  l2_bits, 1 byte, then 2 of padding
//	36  encryption: 0 none, 1 AES
//	40  place of the L1 table, 8 bytes
//
// An entry of the L1 table is the place of an L2 table of 2^l2_bits entries, or
// 0. An entry of an L2 table is the place of a cluster, or 0; with bit 63 the
// cluster is compressed: its place stands in the lower 63 - cluster_bits bits,
// its length in bytes in the cluster_bits bits above, and it is a raw deflate
// stream. Only whole sectors are places of clusters that are not compressed.
//
// The format is specified by its implementation, QEMU's block/qcow.c. Nothing
// is laid out in it.
package qcow1
