package stage_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

var (
	be = binary.BigEndian
	le = binary.LittleEndian
)

// trick is a known way to lead a reader of images astray.
type trick struct {
	name  string // as the field knows it
	made  string // the kind of image that it begins with, of kinds or "raw"
	spoil func(b []byte) []byte
	want  error // nil for one that does no harm here: the disk is the same
	words string
}

// in changes an image in place.
func in(f func(b []byte)) func([]byte) []byte {
	return func(b []byte) []byte { f(b); return b }
}

func put32(o binary.ByteOrder, at int, v uint32) func([]byte) []byte {
	return in(func(b []byte) { o.PutUint32(b[at:], v) })
}

func put64(o binary.ByteOrder, at int, v uint64) func([]byte) []byte {
	return in(func(b []byte) { o.PutUint64(b[at:], v) })
}

// sealed changes an image and makes its checksums fit.
func sealed(format string, f func(b []byte)) func([]byte) []byte {
	return func(b []byte) []byte {
		f(b)
		d := &damaged{base: b, size: int64(len(b))}
		reseal(d, format)
		for _, p := range d.patches {
			copy(b[p.off:], p.b)
		}
		return b
	}
}

// both changes both copies of a VHD's footer.
func both(f func(foot []byte)) func([]byte) []byte {
	return sealed("vhd", func(b []byte) { f(b); f(b[len(b)-512:]) })
}

// twice changes both copies of a VHDX's structure.
func twice(at1, at2 int, f func(b []byte)) func([]byte) []byte {
	return sealed("vhdx", func(b []byte) { f(b[at1:]); f(b[at2:]) })
}

// l2 is where the first L2 table of a qcow2 is.
func l2(b []byte) uint64 { return be.Uint64(b[be.Uint64(b[40:]):]) &^ (1 << 63) }

// bat is where the BAT of a VHDX, and its metadata, are.
func bat(b []byte) (bat, meta uint64) {
	for e := b[192*kib+16:]; bat == 0 || meta == 0; e = e[32:] {
		switch at := le.Uint64(e[16:]); e[0] {
		case 0x66:
			bat = at
		case 0x06:
			meta = at
		}
	}
	return bat, meta
}

// item is the content of a metadata item of a VHDX, by the first byte of its id.
func item(b []byte, id byte) []byte {
	_, meta := bat(b)
	for e := b[meta+32:]; ; e = e[32:] {
		if e[0] == id {
			return b[meta+uint64(le.Uint32(e[16:])):]
		}
	}
}

// text changes the descriptor inside a VMDK.
func text(old, new string) func([]byte) []byte {
	return in(func(b []byte) {
		s, _, _ := strings.Cut(string(b[512:21*512]), "\x00")
		if !strings.Contains(s, old) {
			panic("no " + old)
		}
		clear(b[512 : 21*512])
		copy(b[512:], strings.Replace(s, old, new, 1))
	})
}

// extension puts a header extension before those of a qcow2.
func extension(kind uint32, data string) func([]byte) []byte {
	return in(func(b []byte) {
		at := int(be.Uint32(b[100:]))
		n := 8 + (len(data)+7)/8*8
		copy(b[at+n:4096], bytes.Clone(b[at:4096-n]))
		clear(b[at : at+n])
		be.PutUint32(b[at:], kind)
		be.PutUint32(b[at+4:], uint32(len(data)))
		copy(b[at+8:], data)
	})
}

// gd is where the directory and the first table of a VMDK are.
func gd(b []byte) (dir, table []byte) {
	dir = b[512*le.Uint64(b[56:]):]
	return dir, b[512*uint64(le.Uint32(dir)):]
}

func tail(s string, n int) func([]byte) []byte {
	return in(func(b []byte) { copy(b[len(b)-n:], s) })
}

func backing(name string) func([]byte) []byte {
	return in(func(b []byte) {
		be.PutUint64(b[8:], 4096)
		be.PutUint32(b[16:], uint32(len(name)))
		copy(b[4096:], name)
	})
}

var tricks = []trick{
	{"CVE-2008-2004, a guest writes a header into its raw disk", "raw", in(func(b []byte) { copy(b, "QFI\xfb\x00\x00\x00\x03") }), codec.ErrFormat, "content is qcow2"},
	{"CVE-2024-40767, a raw disk is the text of a VMDK", "raw", in(func(b []byte) {
		copy(b, "# Disk DescriptorFile\nversion=1\nRW 1 FLAT \"/etc/passwd\" 0\n")
	}), codec.ErrUnsupported, "descriptor"},
	{"a raw disk ends as a fixed VHD", "raw", tail("conectix", 512), codec.ErrFormat, "content is vhd"},
	{"a raw disk has the mark of a VDI", "raw", put32(le, 64, 0xBEDA107F), codec.ErrFormat, "content is vdi"},
	{"a fixed VHD begins as a VMDK", "vhd-fixed", in(func(b []byte) { copy(b, "KDMV") }), codec.ErrUnsupported, "vmdk and vhd at the same time"},
	{"a fixed VHD begins as another", "vhd-fixed", in(func(b []byte) { copy(b, b[len(b)-512:]) }), codec.ErrUnsupported, "begins with another"},
	{"LUKS", "raw", in(func(b []byte) { copy(b, "LUKS\xba\xbe") }), codec.ErrUnsupported, "LUKS"},

	{"CVE-2015-1851, backing file", "qcow2-v3", backing("/etc/passwd"), codec.ErrUnsupported, `"/etc/passwd"`},
	{"CVE-2014-0134, backing file of version 2", "qcow2-v2", backing("/etc/shadow\n\x1b"), codec.ErrUnsupported, `"/etc/shadow\n\x1b"`},
	{"CVE-2024-4467, backing file as JSON", "qcow2-v3", backing(`json:{"file.filename":"/etc/passwd"}`), codec.ErrUnsupported, "json:"},
	{"backing file of no length", "qcow2-v3", put64(be, 8, 4096), codec.ErrUnsupported, "backing"},
	{"a backing format and no backing file", "qcow2-v3", extension(0xE2792ACA, "raw"), nil, ""},
	{"CVE-2024-32498, external data file by its bit", "qcow2-v3", put64(be, 72, 4), codec.ErrUnsupported, "external data file"},
	{"CVE-2024-32498, by its extension", "qcow2-v3", extension(0x44415441, "/etc/passwd"), codec.ErrUnsupported, `"/etc/passwd"`},
	{"CVE-2024-32498, by the bit of raw ones", "qcow2-v3", put64(be, 88, 2), codec.ErrUnsupported, "external data file"},
	{"an encrypted qcow2", "qcow2-v3", put32(be, 32, 2), codec.ErrUnsupported, "LUKS"},
	{"an encrypted qcow2 of old", "qcow2-v2", put32(be, 32, 1), codec.ErrUnsupported, "AES"},
	{"an unknown feature", "qcow2-v3", put64(be, 72, 1<<9), codec.ErrUnsupported, "bit 9"},
	{"CVE-2022-47951, flat extent", "vmdk-sparse", text("SPARSE \"", "FLAT \"/etc/"), codec.ErrUnsupported, `"/etc/`},
	{"CVE-2022-47951, sparse extent elsewhere", "vmdk-stream", text("SPARSE \"", "SPARSE \"/etc/"), codec.ErrUnsupported, `"/etc/`},
	{"CVE-2022-47951, parent", "vmdk-sparse", text("parentCID=ffffffff", "parentCID=00000001\nparentFileNameHint=\"/etc/passwd\""), codec.ErrUnsupported, `"/etc/passwd"`},
	{"a descriptor with two createTypes", "vmdk-sparse", text("createType", "createType=\"monolithicFlat\"\ncreateType"), codec.ErrCorrupt, "again"},
	{"a VMDK through a text transfer", "vmdk-sparse", in(func(b []byte) { copy(b[73:], "\n\r\n\r") }), codec.ErrCorrupt, "text transfer"},
	{"a VHD with a parent", "vhd-dynamic", both(func(f []byte) { be.PutUint32(f[60:], 4) }), codec.ErrUnsupported, "parent"},
	{"a VHDX with a parent", "vhdx-dynamic", in(func(b []byte) { item(b, 0x37)[4] |= 2 }), codec.ErrUnsupported, "parent"},
	{"a VDI with a parent", "vdi-dynamic", in(func(b []byte) { b[424] = 1 }), codec.ErrUnsupported, "parent"},

	{"CVE-2014-0142, block size 0", "vdi-dynamic", put32(le, 376, 0), codec.ErrCorrupt, "block size at 376 is 0"},
	{"CVE-2014-0142, grain size 0", "vmdk-sparse", put64(le, 20, 0), codec.ErrCorrupt, "grainSize at 20 is 0"},
	{"CVE-2014-0142, tables of 0 entries", "vmdk-sparse", put32(le, 44, 0), codec.ErrCorrupt, "numGTEsPerGT at 44 is 0"},
	{"CVE-2014-0144, block size 0", "vhd-dynamic", sealed("vhd", func(b []byte) { be.PutUint32(b[512+32:], 0) }), codec.ErrCorrupt, "is 0"},
	{"CVE-2014-0144, data offset at the end", "vhd-dynamic", both(func(f []byte) { be.PutUint64(f[16:], 1<<63) }), codec.ErrCorrupt, "dynamic header"},
	{"CVE-2014-0144, cluster bits", "qcow2-v3", put32(be, 20, 40), codec.ErrCorrupt, "cluster_bits at 20"},
	{"CVE-2014-0148, block size 0", "vhdx-dynamic", in(func(b []byte) { le.PutUint32(item(b, 0x37), 0) }), codec.ErrCorrupt, "block size 0"},
	{"CVE-2014-0148, sector size 0", "vhdx-dynamic", in(func(b []byte) { le.PutUint32(item(b, 0x1d), 0) }), codec.ErrCorrupt, "sector size 0"},
	{"CVE-2014-0143, L1 table overflows", "qcow2-v3", in(func(b []byte) { be.PutUint64(b[24:], 1<<62); be.PutUint32(b[36:], 1<<32-1) }), codec.ErrCorrupt, "size at 24"},
	{"CVE-2014-0143, block map overflows", "vdi-dynamic", in(func(b []byte) { le.PutUint64(b[368:], 1<<52); le.PutUint32(b[384:], 1<<32-1) }), codec.ErrUnsupported, "4294967295 blocks"},
	{"CVE-2014-0143, BAT overflows", "vhdx-dynamic", in(func(b []byte) { le.PutUint64(item(b, 0x24), 1<<46) }), codec.ErrCorrupt, "entries"},
	{"CVE-2014-0143, BAT of a VHD overflows", "vhd-dynamic", sealed("vhd", func(b []byte) {
		be.PutUint32(b[512+28:], 1<<31)
		be.PutUint64(b[48:], 1<<51)
		be.PutUint64(b[len(b)-512+48:], 1<<51)
	}), codec.ErrCorrupt, "block allocation table"},
	{"CVE-2014-0143, directory overflows", "vmdk-sparse", put64(le, 12, 1<<63), codec.ErrCorrupt, "capacity at 12"},
	{"CVE-2014-0145, snapshot table past the end", "qcow2-v3", in(func(b []byte) { be.PutUint32(b[60:], 1<<32-1); be.PutUint64(b[64:], 1<<62) }), nil, ""},
	{"CVE-2014-0147, refcount table of all ones", "qcow2-v3", in(func(b []byte) { be.PutUint64(b[48:], 1<<64-1); be.PutUint32(b[56:], 1<<32-1) }), nil, ""},
	{"refcounts that lie", "qcow2-v3", in(func(b []byte) { at := be.Uint64(b[48:]); clear(b[at : at+64*kib]) }), nil, ""},
	{"CVE-2014-0223, size of 16 EiB", "qcow2-v2", put64(be, 24, 1<<64-1), codec.ErrCorrupt, "size at 24"},

	{"amplification, qcow2", "qcow2-v3", in(func(b []byte) { t := b[l2(b):]; copy(t[8:16], t[:8]) }), codec.ErrCorrupt, "share"},
	{"amplification, compressed qcow2", "qcow2-zlib", in(func(b []byte) { t := b[l2(b):]; copy(t[8:16], t[:8]) }), codec.ErrCorrupt, "share"},
	{"amplification, one L2 table twice", "qcow2-512", in(func(b []byte) { t := b[be.Uint64(b[40:]):]; copy(t[8:16], t[:8]) }), codec.ErrCorrupt, "same l2 table"},
	{"amplification, VDI", "vdi-dynamic", in(func(b []byte) { t := b[le.Uint32(b[340:]):]; copy(t[4:8], t[:4]) }), codec.ErrCorrupt, "share"},
	{"amplification, VHD", "vhd-dynamic", in(func(b []byte) { t := b[1536:]; copy(t[4:8], t[:4]) }), codec.ErrCorrupt, "share"},
	{"amplification, VHDX", "vhdx-dynamic", in(func(b []byte) { at, _ := bat(b); copy(b[at+8:at+16], b[at:at+8]) }), codec.ErrCorrupt, "share"},
	{"amplification, VMDK", "vmdk-sparse", in(func(b []byte) { _, t := gd(b); copy(t[4:8], t[:4]) }), codec.ErrCorrupt, "share"},
	{"amplification, compressed VMDK", "vmdk-stream", in(func(b []byte) { _, t := gd(b); copy(t[4:8], t[:4]) }), codec.ErrCorrupt, "share"},
	{"amplification, one grain table twice", "vmdk-sparse", in(func(b []byte) { d, _ := gd(b); copy(d[4:8], d[:4]) }), codec.ErrCorrupt, "entries 0 and 1"},

	{"metadata as data, qcow2", "qcow2-v3", in(func(b []byte) { at := l2(b); be.PutUint64(b[at:], be.Uint64(b[40:])|1<<63) }), codec.ErrCorrupt, "share"},
	{"metadata as data, VHD", "vhd-dynamic", put32(be, 1536, 1), codec.ErrCorrupt, "share"},
	{"metadata as data, VHDX", "vhdx-dynamic", in(func(b []byte) { at, meta := bat(b); le.PutUint64(b[at:], meta|6) }), codec.ErrCorrupt, "share"},
	{"metadata as data, VMDK", "vmdk-sparse", in(func(b []byte) { _, t := gd(b); le.PutUint32(t, 1) }), codec.ErrCorrupt, "share"},
	{"metadata as data, VDI", "vdi-dynamic", in(func(b []byte) { le.PutUint32(b[344:], le.Uint32(b[340:])) }), codec.ErrCorrupt, "share"},
	{"self reference, L1 entry to the L1 table", "qcow2-v3", in(func(b []byte) { at := be.Uint64(b[40:]); be.PutUint64(b[at:], at) }), codec.ErrCorrupt, "share"},
	{"self reference, L2 entry to its table", "qcow2-v3", in(func(b []byte) { at := l2(b); be.PutUint64(b[at:], at|1<<63) }), codec.ErrCorrupt, "share"},
	{"self reference, directory entry to the directory", "vmdk-sparse", in(func(b []byte) { d, _ := gd(b); le.PutUint32(d, le.Uint32(b[56:])) }), codec.ErrCorrupt, "share"},

	{"beyond the end, qcow2", "qcow2-v3", in(func(b []byte) { be.PutUint64(b[l2(b):], 1<<40) }), codec.ErrCorrupt, "past the end"},
	{"beyond the end, compressed qcow2", "qcow2-zlib", in(func(b []byte) { be.PutUint64(b[l2(b):], 1<<62|1<<40) }), codec.ErrCorrupt, "past the end"},
	{"beyond the end, VDI", "vdi-dynamic", in(func(b []byte) { le.PutUint32(b[le.Uint32(b[340:]):], 1<<30) }), codec.ErrCorrupt, "past the end"},
	{"beyond the end, VHD", "vhd-dynamic", put32(be, 1536, 1<<30), codec.ErrCorrupt, "past the end"},
	{"beyond the end, VHDX", "vhdx-dynamic", in(func(b []byte) { at, _ := bat(b); le.PutUint64(b[at:], 1<<40|6) }), codec.ErrCorrupt, "past the end"},
	{"beyond the end, VMDK", "vmdk-sparse", in(func(b []byte) { _, t := gd(b); le.PutUint32(t, 1<<31) }), codec.ErrCorrupt, "past the end"},

	{"stale header copy, VHD", "vhd-dynamic", sealed("vhd", func(b []byte) { be.PutUint64(b[48:], 1<<20) }), codec.ErrCorrupt, "disagree"},
	{"stale header copy, VHDX", "vhdx-dynamic", sealed("vhdx", func(b []byte) { copy(b[64*kib+8:64*kib+16], b[128*kib+8:]); b[64*kib+16]++ }), codec.ErrCorrupt, "sequence number"},
	{"stale region table, VHDX", "vhdx-dynamic", sealed("vhdx", func(b []byte) { b[256*kib+16+24]++ }), codec.ErrCorrupt, "different"},
	{"a log without entries", "vhdx-dynamic", twice(64*kib, 128*kib, func(b []byte) { b[48] = 1 }), codec.ErrCorrupt, "no complete sequence"},
	{"a log over the headers", "vhdx-dynamic", twice(64*kib, 128*kib, func(b []byte) { le.PutUint64(b[72:], 0) }), codec.ErrCorrupt, "log at 0x0"},
	{"a region that overlaps", "vhdx-dynamic", twice(192*kib, 256*kib, func(b []byte) { copy(b[16+16:16+24], b[48+16:48+24]) }), codec.ErrCorrupt, ""},

	{"a compressed cluster of noise", "qcow2-zlib", in(func(b []byte) { copy(payload(b), "\xed\xc1\x01\x01\x00\x00\x00\x80\x90\xfe\xaf\xee") }), codec.ErrCorrupt, "compressed cluster"},
	{"zstd window of 3.75 TiB", "qcow2-zstd", in(func(b []byte) { copy(payload(b), "\x28\xb5\x2f\xfd\x00\xff") }), codec.ErrCorrupt, "window"},
	{"zstd content of 2^64-1", "qcow2-zstd", in(func(b []byte) {
		copy(payload(b), "\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\xff\xff")
	}), codec.ErrCorrupt, "compressed cluster"},
	{"polyglot, qcow2 and VHD", "qcow2-v3", func(b []byte) []byte { return append(b, "conectix"+strings.Repeat("\x00", 504)...) }, codec.ErrUnsupported, "at the same time"},
	{"polyglot, qcow2 and VDI", "qcow2-v3", put32(le, 64, 0xBEDA107F), codec.ErrUnsupported, "qcow2 and vdi at the same time"},
	{"polyglot, VMDK and VDI", "vmdk-sparse", put32(le, 64, 0xBEDA107F), codec.ErrUnsupported, "vmdk and vdi at the same time"},
	{"polyglot, VDI and tar", "vdi-dynamic", in(func(b []byte) { copy(b[257:], "ustar") }), codec.ErrUnsupported, "at the same time"},
	{"polyglot, VHDX and dmg", "vhdx-dynamic", tail("koly", 512), codec.ErrUnsupported, "at the same time"},
}

// payload is the first compressed data of a qcow2 of 64 KiB clusters.
func payload(b []byte) []byte {
	for e := b[l2(b):]; ; e = e[8:] {
		if v := be.Uint64(e); v>>62 == 1 {
			return b[v&(1<<54-1):]
		}
	}
}

// TestTricks: what the field knows of hostile images, each refused by name, or
// without effect.
func TestTricks(t *testing.T) {
	codectest.Tool(t, "qemu-img")
	disk := guest(1)
	images := map[string][]byte{"raw": disk}
	formats := map[string]string{"raw": "raw"}
	for _, k := range kinds {
		formats[k.name] = k.format
	}
	var c cost
	for _, x := range tricks {
		t.Run(x.name, func(t *testing.T) {
			if images[x.made] == nil {
				for _, k := range kinds {
					if k.name == x.made {
						images[x.made] = made(t, k.format, disk, k.options...)
					}
				}
			}
			b := x.spoil(bytes.Clone(images[x.made]))
			d, err := check(t, formats[x.made], &damaged{base: b, size: int64(len(b))}, &c, x.name)
			if x.want == nil {
				if err == nil {
					err = sameBytes(part{d, int64(len(disk))}, disk)
				}
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, x.want) || !strings.Contains(fmt.Sprint(err), x.words) {
				t.Errorf("got %v, want %v that says %q", err, x.want, x.words)
			}
		})
	}
	c.log(t)
}
