// Package zvhd is the ZVHD and ZVHD2 of Huawei's clouds: compressed images in
// the shape of a VHD footer that no VHD reader opens. All fields are
// little-endian.
//
// Both begin and end with a header block of 4096 bytes, the same but for what
// is said below, of which the first 512 count:
//
//	0      cookie "stream" 00 00, or "z2strm" 00 00
//	8      features, version 0x00010000
//	16     all ones
//	24     time, seconds since 2000; creator "tap" 00, its version and host
//	40     original size: of the disk
//	48     current size: that rounded up to 1 GiB, which the vendor's own
//	       reader shows
//	56     cylinders << 16, heads << 8, sectors per track
//	60     type: 4
//	64     checksum: the complement of the sum of the 512 bytes but these four
//	68     UUID, in plain byte order
//	84     saved, hidden: the checksum may be that of a hidden of 0
//
// In ZVHD2 only:
//
//	87     version 1, 1 byte
//	88     block size, blocks of the disk
//	96     position of the index, of the bitmap, 8 bytes each
//	112    length of the index, of the bitmap
//	120    length of a segment of the index 524288, of the bitmap 4096
//	128    segments of the index, of the bitmap
//	136    blocks with data
//	140    1 if the index has blocks without data too, 1 byte
//	141    compression: 0 zlib, 1 zstd, 1 byte
//
// Blocks have 2 MiB. One with data has a record, a multiple of 4096 bytes long.
// Records stand in ascending order of their blocks, from 4096 on:
//
//	0      "hwstream bg" 00
//	12     length of the payload
//	16     number of the block, then 28 unused bytes
//	48     payload, then zeros
//	-4     "end" 00
//
// The payloads of a ZVHD are one zlib stream (RFC 1950) that never ends: its
// two-byte head is in the first payload only, each block ends with a sync flush,
// and a block may refer to the 32 KiB before it. Reading one alone takes these,
// which take what they refer to, and so on: see [stream]. There is no index;
// opening walks along the records, and a [codec.Index] of windows, made when the
// image was imported, lets a reader begin near what it wants.
//
// The payloads of a ZVHD2 stand for themselves: zstd frames, or a zlib stream
// that never ends. Behind the records are a stale copy of the header, the index,
// the bitmap, and the header that counts:
//
//	index   per block with data 16 bytes: position of its record, 8 bytes,
//	        number of the block, length of the record; filled up to a segment
//	bitmap  a bit per block, the lowest of a byte first; filled up to a segment
//
// The layouts hold stored data, so that every record has 513 * 4096 bytes and
// all positions follow from the map alone. A payload is, with zlib, 64 stored
// deflate blocks of 32 KiB, and with zstd one frame of 16 raw blocks of 128 KiB.
//
// The formats have no specification. Huawei published the block drivers of its
// qemu-img-hw as ims-qemu-img in 2018, which say all this.
package zvhd
