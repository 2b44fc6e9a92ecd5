// Package tarball is the arithmetic of tar archives: members laid out as a
// virtual file, and members found in an archive, each a range of its bytes.
// Nothing is ever unpacked.
//
// A member is a header of 512 bytes and its bytes, padded with zeros to a
// multiple of 512. Two such sectors of zeros end an archive.
//
//	0    name, 100 bytes       257  "ustar" NUL "00" (USTAR, PAX) or
//	100  mode, uid, gid, 8          "ustar  " NUL (GNU)
//	124  size, 12              265  user and group name, 32 each
//	136  time, 12              329  device numbers, 8 each
//	148  checksum, 8           345  USTAR: prefix of the name, 155
//	156  type
//	157  target of a link, 100
//
// Numbers are octal text. One too large for its field is base-256: a byte of
// 0x80 and the number, big-endian, in the rest (GNU tar manual, "Extensions to
// the Basic Format"). The checksum is the sum of the header's bytes, with
// spaces for itself.
//
// Read takes the three dialects: a long name or a large size may stand in a
// header of type L (GNU) or x (POSIX.1-2001, pax) before the member's own. It
// refuses all that is more than a list of plain files: links, folders, devices,
// sparse members, names with a path, names that stand twice.
package tarball
