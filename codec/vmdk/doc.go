// Package vmdk is VMware's virtual disk in one file. All fields are
// little-endian and all positions count sectors of 512 bytes.
//
// The sparse extent header takes the first sector (Virtual Disk Format 1.1,
// "Hosted Sparse Extents"; 5.0, "Stream-Optimized Compressed Sparse Extents"):
//
//	0   magic "KDMV"                 48  redundant grain directory
//	4   version, 1 to 3              56  grain directory; all ones: the footer
//	8   flags                            at the end of the file has it
//	12  capacity                     64  overHead, sectors before the grains
//	20  grainSize, 128               72  uncleanShutdown, 1 byte
//	28  descriptor, 36 its length    73  "\n \r\n", what a text transfer breaks
//	44  numGTEsPerGT, 512            77  compressAlgorithm, 2 bytes
//
// A grain directory has a 4-byte sector number for each grain table, a table
// one for each of its 512 grains: 0 reads as zeros, 1 too when flag bit 2 is
// set. In a compressed file a grain is a record:
//
//	0   guest sector, 8 bytes
//	8   length of the data, 4 bytes; 0 makes the sector a marker, of the type
//	    at 12: 0 end of stream, 1 grain table, 2 grain directory, 3 footer
//	12  zlib stream (RFC 1950) of the grain, then zeros up to a sector
//
// The layouts made here hold allocated grains in guest order:
//
//	monolithicSparse, shown as sparse.vmdk
//	0        header
//	1        descriptor, 20 sectors
//	21       redundant directory, then all redundant tables
//	gd       directory, then all tables, then zeros up to a grain
//	ov       the grains, 128 sectors each
//
//	streamOptimized, shown as vmdk
//	0        header
//	1        descriptor, 20 sectors, then zeros
//	128      groups of up to 512 grains, of which empty ones are left out:
//	           records of 129 sectors each
//	           marker and grain table, 5 sectors
//	Q        marker and grain directory
//	Q+gds+1  marker and footer, the header with the directory's place
//	Q+gds+3  end of stream: one sector of zeros, the last of the file
//
// The records hold stored deflate blocks, so that all have one length and
// every position follows from the map alone:
//
//	0      guest sector, length 65,552
//	12     78 01, 00 00 80 FF 7F  stored block of 32,768 bytes
//	19     guest bytes
//	32787  01 00 80 FF 7F         the final stored block of 32,768 bytes
//	32792  guest bytes
//	65560  adler32 of the grain, big-endian, then 484 zeros
//
// A third one, shown as deflate.vmdk, is the second with the streams of a disk
// that is stored as deflate: 78 9C, the stream and the adler32 that an index
// knows make the zlib stream of a record, which has as many sectors as it needs.
// Grains without a stream that is shorter have records of stored blocks.
//
// Read are both of these kinds of file. A file that leads to another, whether
// parent, flat or split extent or device, is refused by name.
package vmdk
