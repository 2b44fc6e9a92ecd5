// Package qcow2 reads, lays out and compresses QEMU's copy-on-write images,
// versions 2 and 3. "Section" below is one of the QEMU project's "Qcow2 Image
// File Format" (docs/interop/qcow2). Every number in a file is big-endian.
//
// # On disk
//
// The file is a sequence of clusters of C = 1<<cluster_bits bytes, 512 B to
// 2 MiB. Cluster 0 begins with the header (section Header):
//
//	 0  4  magic "QFI\xfb"          56  4  refcount_table_clusters
//	 4  4  version, 2 or 3          60  4  nb_snapshots
//	 8  8  backing_file_offset      64  8  snapshots_offset
//	16  4  backing_file_size        72  8  incompatible_features (version 3 on)
//	20  4  cluster_bits             80  8  compatible_features
//	24  8  size of the disk, bytes  88  8  autoclear_features
//	32  4  crypt_method             96  4  refcount_order
//	36  4  l1_size, entries        100  4  header_length, at least 104
//	40  8  l1_table_offset         104  1  compression_type, 0 zlib, 1 zstd
//	48  8  refcount_table_offset   105  7  padding
//
// Header extensions follow (section Header extensions): 4 bytes type, 4 bytes
// length, the data padded to 8; type 0 ends them.
//
// The map has two levels (section Cluster mapping table). The L1 table holds
// 8-byte offsets of L2 tables, each one cluster of C/8 entries, or of C/16
// with extended L2 entries:
//
//	L1        bits 9-55 offset of the L2 table, 0 for none; bit 63 refcount is 1
//	standard  bit 0 reads as zeros (version 3), bits 9-55 host cluster offset,
//	          bit 62 clear, bit 63 refcount is 1
//	compressed, bit 62 set, x = 62 - (cluster_bits - 8)
//	          bits 0 to x-1 host offset in bytes, bits x to 61 the number of
//	          512-byte sectors that the data touches after its first one
//	extended  a second word: bits 0-31 subcluster allocated, bits 32-63
//	          subcluster reads as zeros; subcluster 0 is the lowest bit
//
// Compressed data is a raw deflate stream or zstd frames, without its length:
// it ends with the stream, somewhere in its last sector. Refcounts, snapshots
// and bitmaps are not needed to read the active state and are not looked at.
//
// # As laid out
//
// Version 3, C = 64 KiB, no feature bits, so that the oldest readers take it:
//
//	cluster 0   header of 104 bytes, then zeros, which end the extensions
//	            refcount table, refcount blocks of 16-bit counts
//	            L1 table
//	            L2 tables that have an allocated cluster, in order
//	            allocated clusters in guest order, to the end of the file
//
// What is not allocated is entry 0, never the zero flag, which some readers
// take for a part of the offset.
//
// # As re-framed
//
// [Zlib] and [Zstd] hand on the streams of a disk that is stored encoded, as they
// are. Clusters have the size of its blocks, and everything else is as above, but
// for the data:
//
//	c_off   the streams of compressed clusters in guest order, each from a
//	        sector on, then zeros up to a cluster
//	        plain clusters in guest order, to the end of the file
//
// Plain are blocks that are stored so, and those of which no stream can be handed
// on: ones that are no shorter than their block, that other readers would not
// take alone, and the last one where the disk ends within it. The refcount of a
// cluster with streams is the number of those that touch it.
//
// # As compressed
//
// [Compress] writes the same with compression type zstd, the one incompatible
// feature it needs, and a header of 112 bytes. It knows how much it stores only
// in the end, and the tables come there:
//
//	cluster 0   header, then zeros
//	            stored clusters, in guest order: payloads back to back in
//	            clusters of their own, plain ones between these
//	            refcount blocks, refcount table
//	            L1 table
//	            L2 tables that have a stored cluster, in order, to the end
//
// A payload counts in every cluster that it touches; all other counts are 1.
package qcow2

import "imagefs/codec"

// Format is the qcow2 format.
var Format codec.Format = format{}

type format struct{}

func (format) Name() string { return "qcow2" }

func (format) Probe(head, _ []byte) bool {
	return len(head) >= 8 && string(head[:4]) == magic && (be32(head[4:]) == 2 || be32(head[4:]) == 3)
}
