package stage_test

import (
	"bytes"
	"context"
	"hash/crc32"
	"iter"
	"os"
	"path/filepath"
	"testing"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/codec/codectest"
)

// odd is an image that real programs leave, and that looks damaged.
type odd struct {
	name, format string
	make         func(t *testing.T, disk []byte) []byte
}

// laidOut is the disk in a view of this program, which has what qemu-img does
// not write, such as the footer of a VMDK.
func laidOut(t *testing.T, v codec.View, disk []byte) []byte {
	t.Helper()
	b, err := codectest.ReadAll(codectest.Layout(t, v, allData{codectest.Bytes(disk)}))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// from begins with an image that qemu-img makes.
func from(format string, options []string, change func(b []byte) []byte) func(*testing.T, []byte) []byte {
	return func(t *testing.T, disk []byte) []byte { return change(made(t, format, disk, options...)) }
}

func unchanged(b []byte) []byte { return b }

// tooled lets qemu-img work on an image before it is read.
func tooled(args ...string) func(*testing.T, []byte) []byte {
	return func(t *testing.T, disk []byte) []byte {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, made(t, "qcow2", disk), 0o666); err != nil {
			t.Fatal(err)
		}
		line := append([]string(nil), args...)
		for i := range line {
			if line[i] == "FILE" {
				line[i] = path
			}
		}
		codectest.Exec(t, "qemu-img", line...)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// dirtyLog moves the first page of a VHDX's BAT into its log, as a host that
// lost power leaves it.
func dirtyLog(b []byte) []byte {
	const page = 4 * kib
	at, _ := bat(b)
	log := b[le.Uint64(b[128*kib+72:]):]
	id := []byte("any log's own id")
	data := bytes.Clone(b[at : at+page])
	clear(b[at : at+page])

	e := log[:2*page]
	clear(e)
	copy(e, "loge")
	le.PutUint32(e[8:], 2*page)
	le.PutUint64(e[16:], 7) // sequence
	le.PutUint32(e[24:], 1) // descriptors
	copy(e[32:], id)
	le.PutUint64(e[48:], uint64(len(b)))
	le.PutUint64(e[56:], uint64(len(b)))
	d := e[64:]
	copy(d, "desc")
	copy(d[4:8], data[page-4:])
	copy(d[8:16], data[:8])
	le.PutUint64(d[16:], at)
	le.PutUint64(d[24:], 7)
	s := e[page:]
	copy(s, data)
	copy(s, "data\x00\x00\x00\x00")
	le.PutUint32(s[page-4:], 7)
	le.PutUint32(e[4:], crc32.Checksum(e, crc32.MakeTable(crc32.Castagnoli)))
	return twice(64*kib, 128*kib, func(h []byte) { copy(h[48:64], id) })(b)
}

var odds = []odd{
	{"qcow2, the last cluster cut short", "qcow2", from("qcow2", nil, func(b []byte) []byte { return b[:len(b)-56*kib] })},
	{"qcow2, not closed cleanly", "qcow2", from("qcow2", []string{"-o", "lazy_refcounts=on"}, put64(be, 72, 1))},
	{"qcow2, with a snapshot", "qcow2", tooled("snapshot", "-c", "before", "FILE")},
	{"qcow2, with a bitmap", "qcow2", tooled("bitmap", "--add", "FILE", "changes")},
	{"qcow2, grown", "qcow2", tooled("resize", "-f", "qcow2", "FILE", "40M")},
	{"qcow2, shrunk", "qcow2", tooled("resize", "-f", "qcow2", "--shrink", "FILE", "16M")},
	{"qcow2, of version 2 made from 3", "qcow2", tooled("amend", "-f", "qcow2", "-o", "compat=0.10", "FILE")},
	{"qcow2, tables allocated ahead", "qcow2", from("qcow2", []string{"-o", "preallocation=metadata"}, unchanged)},
	{"qcow2, all allocated ahead", "qcow2", from("qcow2", []string{"-o", "preallocation=full"}, unchanged)},
	{"qcow2, refcounts of one bit", "qcow2", from("qcow2", []string{"-o", "refcount_bits=1"}, unchanged)},
	{"qcow2, data behind the end", "qcow2", from("qcow2", nil, func(b []byte) []byte { return append(b, guest(5)[:100*kib]...) })},
	{"qcow2, compressed, cut behind the last payload", "qcow2", from("qcow2", []string{"-c"}, func(b []byte) []byte {
		return bytes.TrimRight(b, "\x00")
	})},

	{"vmdk, a footer", "vmdk", func(t *testing.T, disk []byte) []byte { return laidOut(t, format("vmdk"), disk) }},
	{"vmdk, a footer without an end of stream", "vmdk", func(t *testing.T, disk []byte) []byte {
		b := laidOut(t, format("vmdk"), disk)
		return b[:len(b)-512]
	}},
	{"vmdk, a footer and padding", "vmdk", func(t *testing.T, disk []byte) []byte {
		return append(laidOut(t, format("vmdk"), disk), make([]byte, 100*512)...)
	}},
	{"vmdk, tables at the head and padding", "vmdk", from("vmdk", []string{"-o", "subformat=streamOptimized"}, func(b []byte) []byte {
		return append(b, make([]byte, 64*kib)...)
	})},
	{"vmdk, not closed cleanly", "vmdk", from("vmdk", nil, in(func(b []byte) { b[72] = 1 }))},
	{"vmdk, zeroed grains", "vmdk", from("vmdk", []string{"-o", "zeroed_grain=on"}, unchanged)},

	{"vdi, the last block cut short", "vdi", from("vdi", nil, func(b []byte) []byte { return b[:len(b)-1000*kib] })},
	{"vdi, blocks in any order", "vdi", from("vdi", nil, in(func(b []byte) {
		m, data := b[le.Uint32(b[340:]):], b[le.Uint32(b[344:]):]
		le.PutUint32(m, 1)
		le.PutUint32(m[4*3:], 0)
		first := bytes.Clone(data[:mib])
		copy(data[:mib], data[mib:2*mib])
		copy(data[mib:2*mib], first)
	}))},

	{"vhd, the copy of the footer damaged", "vhd", from("vhd", nil, in(func(b []byte) { b[100] ^= 1 }))},
	{"vhd, a suspended guest", "vhd", from("vhd", nil, both(func(f []byte) { f[84] = 1 }))},
	{"vhd, a footer of 511 bytes", "vhd", from("vhd", []string{"-o", "subformat=fixed"}, func(b []byte) []byte { return b[:len(b)-1] })},
	{"vhd, exact size", "vhd", from("vhd", []string{"-o", "force_size=on"}, unchanged)},

	{"vhdx, a log that is not applied", "vhdx", from("vhdx", []string{"-o", "block_size=1M"}, dirtyLog)},
	{"vhdx, one header damaged", "vhdx", from("vhdx", nil, in(func(b []byte) { b[64*kib+100] ^= 1 }))},
	{"vhdx, one region table damaged", "vhdx", from("vhdx", nil, in(func(b []byte) { b[192*kib+100] ^= 1 }))},
	{"vhdx, a log of 4 MiB", "vhdx", from("vhdx", []string{"-o", "log_size=4M"}, unchanged)},
	{"vhdx, blocks not present instead of zero", "vhdx", from("vhdx", []string{"-o", "block_state_zero=off"}, unchanged)},
}

func format(name string) codec.Format {
	for _, f := range all.Formats {
		if f.Name() == name {
			return f
		}
	}
	return nil
}

// TestOddImages: what looks damaged and is not must be taken, and read as
// qemu-img reads it, or as it was where qemu-img refuses.
func TestOddImages(t *testing.T) {
	codectest.Tool(t, "qemu-img")
	disk := guest(1)
	for _, x := range odds {
		t.Run(x.name, func(t *testing.T) {
			b := x.make(t, disk)
			o := &oracle{t: t, format: x.format, want: disk}
			src := &damaged{base: b, size: int64(len(b))}
			d, err := check(t, x.format, src, &o.cost, x.name)
			if err != nil {
				t.Fatal(err)
			}
			if n := d.Size() - int64(len(disk)); n > 0 {
				o.want = append(bytes.Clone(disk), make([]byte, n)...)
			}
			if err := o.compare(t.TempDir(), job{src, d, x.name}); err != nil {
				t.Error(err)
			}
			if o.sound.Load() > 0 {
				t.Log("qemu-img refuses it")
			}
		})
	}
}

// allData is a source as a disk without a hole.
type allData struct{ codec.Source }

// Extents implements [codec.Disk].
func (d allData) Extents(_ context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	return func(yield func(codec.Extent, error) bool) {
		if n = min(n, d.Size()-off); off >= 0 && n > 0 {
			yield(codec.Extent{Off: off, Len: n}, nil)
		}
	}
}
