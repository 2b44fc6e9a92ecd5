package vhd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

func TestFormat(t *testing.T) { codectest.Run(t, Format) }

func TestWorkedExampleHasItsLength(t *testing.T) {
	f := codectest.Layout(t, Format, codectest.Example())
	if f.Size() != 14686208 {
		t.Errorf("length %d, want 14686208", f.Size())
	}
	b := make([]byte, 2048+512)
	if _, err := f.ReadAt(context.Background(), b, 0); err != nil {
		t.Fatal(err)
	}
	if first := be.Uint32(b[tableOff:]); first*sector != 2048 {
		t.Errorf("block 0 in sector %d, want 4", first)
	}
	if !bytes.Equal(b[2048:], ones) {
		t.Error("the bitmap of block 0 is not all ones")
	}
}

func TestLayoutReadByOthers(t *testing.T) {
	for _, d := range codectest.ForTools(blockSize) {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			raw := codectest.RawFile(t, d)
			file := filepath.Join(t.TempDir(), "disk.vhd")
			codectest.WriteFile(t, file, codectest.Layout(t, Format, d))
			codectest.Compare(t, "vpc", file, raw)
			info := codectest.Exec(t, "qemu-img", "info", "-f", "vpc", "--output=json", file)
			if want := fmt.Sprintf(`"virtual-size": %d,`, codec.Up(d.Size(), 512)); !strings.Contains(info, want) {
				t.Errorf("qemu-img info says %s, want %s", info, want)
			}
			if d.Size() < 1<<30 {
				codectest.SevenZip(t, file, raw)
			}
			info = codectest.Exec(t, "vhdiinfo", file)
			for _, want := range []string{"Dynamic", fmt.Sprintf("(%d bytes)", codec.Up(d.Size(), 512))} {
				if !strings.Contains(info, want) {
					t.Errorf("vhdiinfo says %s, want %q", info, want)
				}
			}
		})
	}
}

func TestOpenOfOthersFiles(t *testing.T) {
	for _, d := range []*codectest.Disk{
		codectest.Example(),
		codectest.Empty(16 << 20),
		codectest.Full(5<<20+512, 1),
		codectest.LastSector(8<<20 + 512),
		codectest.Alternating(20<<20, 2<<20),
	} {
		for _, options := range []string{
			"subformat=dynamic", "subformat=fixed",
			"subformat=dynamic,force_size=on", "subformat=fixed,force_size=on",
		} {
			t.Run(d.Name+"/"+options, func(t *testing.T) {
				t.Parallel()
				slack := int64(0)
				if !strings.Contains(options, "force_size") {
					slack = 1 << 20 // rounded up to whole cylinders
				}
				file := codectest.Convert(t, "vpc", codectest.RawFile(t, d), "-o", options)
				got := codectest.Open(t, Format, codectest.File(t, file))
				if err := codectest.Same(got, d); err != nil {
					t.Error(err)
				}
				if got.Size() > d.Size()+slack {
					t.Errorf("disk of %d bytes, want %d at most", got.Size(), d.Size()+slack)
				}
			})
		}
	}
}

func TestLayoutTooLarge(t *testing.T) {
	codectest.Layout(t, Format, codectest.LastSector(maxDisk))
	_, err := Format.Layout(context.Background(), codectest.Empty(maxDisk+512), codectest.TestFacts())
	if !errors.Is(err, codec.ErrTooLarge) {
		t.Errorf("error %v, want %v", err, codec.ErrTooLarge)
	}
}

func TestGeometry(t *testing.T) {
	for _, c := range []struct {
		size int64
		c    uint16
		h, s byte
	}{
		{0, 0, 4, 17},
		{512, 0, 4, 17},
		{128 << 20, 963, 16, 17},
		{20959232, 602, 4, 17}, // this and the next four as qemu-img has them
		{35616768, 1023, 4, 17},
		{142974976, 563, 16, 31},
		{508354560, 985, 16, 63},
		{1548288000, 3000, 16, 63},
		{1 << 30, 2080, 16, 63},
		{127 << 30, 65278, 16, 255},
		{2040 << 30, 65535, 16, 255},
	} {
		cy, h, s := geometry(c.size)
		if cy != c.c || h != c.h || s != c.s {
			t.Errorf("%d bytes: %d/%d/%d, want %d/%d/%d", c.size, cy, h, s, c.c, c.h, c.s)
		}
	}
}

// sample is a small dynamic disk: 6 blocks of 4 KiB and 3 sectors more, in
// this order in the file: 5, 0, 6. Of block 0 only the sectors 1, 2, 4 and 7
// were written.
func sample() []byte {
	const size = 6*4096 + 3*512
	foot := footer{version: version10, dataOffset: 512, size: size, kind: typeDynamic, uuid: [16]byte{1}}.marshal()
	h := header{tableOffset: 1536, version: version10, entries: 7, block: 4096}.marshal()
	table := bytes.Repeat([]byte{0xff}, 512)
	b := slices.Concat(foot, h, table)
	for k, i := range []int{5, 0, 6} {
		be.PutUint32(b[1536+4*i:], uint32(len(b)/sector))
		bitmap := make([]byte, 512)
		bitmap[0] = 0xff
		if i == 0 {
			bitmap[0] = 0b01101001
		}
		if i == 6 {
			bitmap[0] = 0b11100000
		}
		data := make([]byte, 4096)
		for j := range data {
			data[j] = byte(k+1)*16 + byte(j%7)
		}
		b = slices.Concat(b, bitmap, data)
	}
	return append(b, foot...)
}

// content is the disk of sample.
func content(b []byte) []byte {
	d := make([]byte, 6*4096+3*512)
	const stride = 512 + 4096
	for _, s := range []int{1, 2, 4, 7} {
		at := 2048 + stride + 512 + s*512
		copy(d[s*512:], b[at:at+512])
	}
	copy(d[5*4096:], b[2048+512:2048+stride])
	copy(d[6*4096:], b[2048+2*stride+512:2048+3*stride])
	return d
}

// fixedSample is a fixed disk of 5 sectors.
func fixedSample() []byte {
	b := make([]byte, 5*512)
	for i := range b {
		b[i] = byte(i%251 + 1)
	}
	return append(b, footer{version: version10, dataOffset: allOnes, size: 5 * 512, kind: typeFixed}.marshal()...)
}

func TestClearBitsReadZero(t *testing.T) {
	b := sample()
	want := content(b)
	d := codectest.Open(t, Format, codectest.Bytes(b))
	for off := range len(want) {
		for _, n := range []int{1, 511, 700, 4096, 9000} {
			p := make([]byte, min(n, len(want)-off))
			if m, err := d.ReadAt(context.Background(), p, int64(off)); m < len(p) {
				t.Fatal(err)
			}
			if !bytes.Equal(p, want[off:off+len(p)]) {
				t.Fatalf("other bytes in the %d at %d", len(p), off)
			}
		}
	}
}

func TestFixedDisk(t *testing.T) {
	b := fixedSample()
	for name, file := range map[string][]byte{
		"as written":         b,
		"footer of 511":      b[:len(b)-1],
		"more than the size": slices.Concat(b[:5*512], make([]byte, 1024), b[5*512:]),
	} {
		got, err := codectest.ReadAll(codectest.Open(t, Format, codectest.Bytes(file)))
		if err != nil || !bytes.Equal(got, b[:5*512]) {
			t.Errorf("%s: other bytes, or %v", name, err)
		}
	}
}

func TestNotes(t *testing.T) {
	saved := func(b []byte) []byte {
		b[len(b)-512+84] = 1
		return resum(b)
	}
	for _, c := range []struct {
		name string
		file []byte
		note string
	}{
		{"sound", sample(), ""},
		{"saved state", saved(fixedSample()), "suspended"},
		{"no footer at the end", sample()[:len(sample())-512], "footer at the end is missing"},
		{"damaged footer at the end", flip(sample(), len(sample())-100), "footer at the end is damaged"},
		{"damaged copy", flip(sample(), 100), "copy of the footer at the start is damaged"},
		{"missing copy", flip(sample(), 0), "copy of the footer at the start is missing"},
	} {
		d := codectest.Open(t, Format, codectest.Bytes(c.file))
		notes := strings.Join(d.(codec.Noted).Notes(), "; ")
		if (c.note == "") != (notes == "") || !strings.Contains(notes, c.note) {
			t.Errorf("%s: notes %q, want %q", c.name, notes, c.note)
		}
		if got, err := codectest.ReadAll(d); err != nil || c.name != "saved state" && !bytes.Equal(got, content(sample())) {
			t.Errorf("%s: other bytes, or %v", c.name, err)
		}
	}
}

func flip(b []byte, at int) []byte { b[at] ^= 1; return b }

// resum mends the checksums of all that has one.
func resum(b []byte) []byte {
	be.PutUint32(b[len(b)-512+64:], checksum(b[len(b)-512:], 64))
	if hasCookie(b) {
		be.PutUint32(b[64:], checksum(b[:512], 64))
		be.PutUint32(b[512+36:], checksum(b[512:1536], 36))
	}
	return b
}
