// Package qed reads the QEMU enhanced disk format. All fields are
// little-endian.
//
//	0   magic "QED\0"
//	4   cluster size, 4 KiB to 64 MiB
//	8   size of a table in clusters, 1 to 16
//	12  size of the header in clusters
//	16  features, 8 bytes: 1 backing file, 2 not closed cleanly, 4 the backing
//	    file is raw
//	24  compatible features, 32 those that a writer clears
//	40  place of the L1 table, 8 bytes
//	48  size of the disk, 8 bytes
//	56  backing file: place of its name, its length, 4 bytes each
//
// An entry of the L1 table is the place of an L2 table, of as many entries of 8
// bytes, or 0. An entry of an L2 table is the place of a cluster, 0 for none, or
// 1 for zeros. Tables and clusters stand at multiples of the cluster size.
//
// The format is specified in QEMU's docs/interop/qed_spec.txt. Nothing is laid
// out in it.
package qed
