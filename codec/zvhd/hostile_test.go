package zvhd

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// mend changes both headers of b and signs them again.
func mend(fn func(h []byte)) func(b []byte) []byte {
	return func(b []byte) []byte {
		for _, h := range [][]byte{b[:4096], b[len(b)-4096:]} {
			fn(h)
			sign(h)
		}
		return b
	}
}

// in changes 4 bytes of both headers.
func in(off int, v uint32) func(b []byte) []byte {
	return mend(func(h []byte) { le.PutUint32(h[off:], v) })
}

// at changes 4 bytes of the file.
func at(off int, v uint32) func(b []byte) []byte {
	return func(b []byte) []byte { le.PutUint32(b[off:], v); return b }
}

// entry changes 4 bytes of entry k of the index.
func entry(k, off int, v uint32) func(b []byte) []byte {
	return func(b []byte) []byte {
		h := b[len(b)-4096:]
		le.PutUint32(b[int(le.Uint64(h[96:]))+16*k+off:], v)
		return b
	}
}

func TestRefusals(t *testing.T) {
	// The records of a tiny image have a page each.
	for _, c := range []struct {
		name string
		kind int
		mend func(b []byte) []byte
		err  error
		text string
	}{
		{"empty file", kindStream, func([]byte) []byte { return nil }, codec.ErrFormat, "no cookie"},
		{"no cookie", kindStream, func([]byte) []byte { return make([]byte, 8192) }, codec.ErrFormat, "no cookie"},
		{"the other format", kindStream, func([]byte) []byte { return tiny(t, kindZlib) }, codec.ErrFormat, "no cookie"},
		{"a header only", kindStream, func(b []byte) []byte { return b[:4096] }, codec.ErrCorrupt, "has 4096 bytes"},
		{"odd length", kindStream, func(b []byte) []byte { return b[:len(b)-1] }, codec.ErrCorrupt, "truncated"},
		{"no header at the end", kindStream, func(b []byte) []byte { return b[:len(b)-4096] }, codec.ErrCorrupt, "no header in the last 4096 bytes, at 0x2000: truncated"},
		{"checksum", kindStream, func(b []byte) []byte { b[100]++; return b }, codec.ErrCorrupt, "header at 0x0: checksum"},
		{"checksum at the end", kindZstd, func(b []byte) []byte { b[len(b)-4000]++; return b }, codec.ErrCorrupt, "checksum"},
		{"version 2", kindStream, in(12, 0x20000), codec.ErrUnsupported, "header version 2.0"},
		{"type 3", kindStream, in(60, 3), codec.ErrUnsupported, "header type 3"},
		{"size of 8 EiB", kindStream, mend(func(h []byte) { le.PutUint64(h[40:], 1<<63); le.PutUint64(h[48:], 1<<63) }), codec.ErrCorrupt, "larger than any disk"},
		{"headers disagree", kindStream, func(b []byte) []byte { h := b[len(b)-4096:]; h[41] ^= 2; sign(h); return b }, codec.ErrCorrupt, "disagree"},
		{"headers disagree", kindZlib, func(b []byte) []byte { h := b[:4096]; h[41] ^= 2; sign(h); return b }, codec.ErrCorrupt, "disagree"},
		{"size below a block", kindStream, in(40, blockSize), codec.ErrCorrupt, "record at 0x2000 is of block 2, on a disk of 1 blocks"},
		{"record magic", kindStream, at(4096, 0), codec.ErrCorrupt, "record at 0x1000 begins with"},
		{"record end", kindStream, at(8188, 0), codec.ErrCorrupt, "record of block 0 at 0x1000: it ends at 0x2000 with"},
		{"last record end", kindStream, at(3*4096-4, 0), codec.ErrCorrupt, "it ends at 0x3000 with"},
		{"payload of 4 GiB", kindStream, at(4096+12, 1<<32-1), codec.ErrCorrupt, "payload of 4294967295 bytes"},
		{"payload of 4 MiB", kindStream, at(4096+12, 4<<20), codec.ErrCorrupt, "payload of 4194304 bytes"},
		{"payload past the end", kindStream, at(8192+12, 4096), codec.ErrCorrupt, "past the end of the records at 0x3000"},
		{"block twice", kindStream, at(8192+16, 0), codec.ErrCorrupt, "is of block 0, behind that of block 0"},
		{"block outside", kindStream, at(8192+16, 3), codec.ErrCorrupt, "is of block 3, on a disk of 3 blocks"},
		{"blocks in another order", kindStream, func(b []byte) []byte { return at(4096+16, 2)(at(8192+16, 0)(b)) }, codec.ErrCorrupt, "is of block 0, behind that of block 2"},

		{"ZVHD2 version 2", kindZlib, mend(func(h []byte) { h[87] = 2 }), codec.ErrUnsupported, "ZVHD2 version 2"},
		{"block size", kindZlib, in(88, 1<<20), codec.ErrUnsupported, "block size at 88 of the header is 1048576"},
		{"index of all blocks", kindZlib, mend(func(h []byte) { h[140] = 1 }), codec.ErrUnsupported, "without data too"},
		{"compression 2", kindZlib, mend(func(h []byte) { h[141] = 2 }), codec.ErrUnsupported, "compression 2"},
		{"fewer blocks", kindZlib, in(92, 2), codec.ErrCorrupt, "2 blocks at 92"},
		{"more data than blocks", kindZlib, in(136, 4), codec.ErrCorrupt, "4 blocks with data at 136"},
		{"index past the end", kindZlib, in(100, 1), codec.ErrCorrupt, "index at 0x1"},
		{"index far past the end", kindZlib, in(100, 1<<31), codec.ErrCorrupt, "index at 0x8"},
		{"index over the header", kindZlib, in(96, 0), codec.ErrCorrupt, "index at 0x0"},
		{"index over the end", kindZlib, in(96, 16384+8192), codec.ErrCorrupt, "not between the headers"},
		{"bitmap in the index", kindZlib, in(104, 16384+4096), codec.ErrCorrupt, "share bytes"},
		{"index length", kindZlib, in(112, 4096), codec.ErrCorrupt, "index of 4096 bytes"},
		{"index segments", kindZlib, in(128, 0), codec.ErrCorrupt, "index of 524288 bytes in 0 segments"},
		{"index segment length", kindZlib, in(120, 0), codec.ErrCorrupt, "in 1 segments of 0"},
		{"bitmap segments", kindZlib, in(132, 2), codec.ErrCorrupt, "bitmap of 4096 bytes in 2 segments"},
		{"record at 0", kindZlib, entry(0, 0, 0), codec.ErrCorrupt, "record of block 0 at 0x0"},
		{"record off a page", kindZlib, entry(0, 0, 4097), codec.ErrCorrupt, "record of block 0 at 0x1001"},
		{"record past the end", kindZlib, entry(1, 4, 1), codec.ErrCorrupt, "past the end of the records"},
		{"record far past the end", kindZlib, entry(1, 4, 1<<31), codec.ErrCorrupt, "index entry 1"},
		{"record in the index", kindZlib, entry(1, 12, 3*4096), codec.ErrCorrupt, "past the end of the records"},
		{"record of no length", kindZlib, entry(1, 12, 0), codec.ErrCorrupt, "record of block 2 at 0x2000, 0 bytes"},
		{"record of odd length", kindZlib, entry(1, 12, 100), codec.ErrCorrupt, "index entry 1"},
		{"two blocks in one record", kindZlib, entry(1, 0, 4096), codec.ErrCorrupt, "that of block 0 ends at"},
		{"block twice", kindZlib, entry(1, 8, 0), codec.ErrCorrupt, "behind that of block 0"},
		{"block outside", kindZlib, entry(1, 8, 3), codec.ErrCorrupt, "on a disk of 3 blocks"},
		{"another block than the bitmap's", kindZlib, entry(1, 8, 1), codec.ErrCorrupt, "bitmap at"},
		{"a bit too many", kindZlib, func(b []byte) []byte { b[le.Uint64(b[len(b)-4096+104:])+7] = 1; return b }, codec.ErrCorrupt, "byte 7 is 0x01"},
	} {
		t.Run(kindNames[c.kind]+"/"+c.name, func(t *testing.T) {
			codectest.Refused(t, formatOf(c.kind), c.mend(tiny(t, c.kind)), c.err, c.text)
		})
	}
}

// TestDamagedPayloads: opening does not see them, reading does.
func TestDamagedPayloads(t *testing.T) {
	data := words(1000, 1)
	z := func(finish bool, n int) []byte {
		var b bytes.Buffer
		w := zlib.NewWriter(&b)
		w.Write(data)
		w.Write(make([]byte, n-len(data)))
		w.Flush()
		if finish {
			w.Close()
		}
		return b.Bytes()
	}
	var far bytes.Buffer // refers to a window that there is none of
	f, err := flate.NewWriterDict(&far, 9, data)
	if err != nil {
		t.Fatal(err)
	}
	f.Write(data)
	f.Flush()
	for _, c := range []struct {
		name    string
		kinds   []int
		payload []byte
		text    string
	}{
		{"good", []int{kindStream, kindZlib}, z(false, blockSize), ""},
		{"less and flushed", []int{kindStream, kindZlib}, z(false, 5000), ""},
		{"empty", []int{kindStream, kindZlib}, nil, "does not begin as a zlib stream"},
		{"no zlib head", []int{kindStream, kindZlib}, z(false, blockSize)[2:], "does not begin as a zlib stream"},
		{"dictionary", []int{kindStream, kindZlib}, append([]byte{0x78, 0xbb}, z(false, 2000)[2:]...), "does not begin as a zlib stream"},
		{"finished", []int{kindStream, kindZlib}, z(true, blockSize), "the zlib stream ends"},
		{"finished early", []int{kindStream, kindZlib}, z(true, 5000), "the zlib stream ends"},
		{"a byte too much", []int{kindStream, kindZlib}, z(false, blockSize+1), "more than the 2097152 bytes"},
		{"cut", []int{kindStream, kindZlib}, z(false, blockSize)[:200], "cut"},
		{"before the start", []int{kindStream, kindZlib}, append([]byte{0x78, 0x9c}, far.Bytes()...), "corrupt"},
		{"empty", []int{kindZstd}, nil, ""},
		{"zlib", []int{kindZstd}, z(false, blockSize), "magic"},
		{"a byte too much", []int{kindZstd}, append(frame(blockSize), frame(1)...), "more than the 2097152 bytes"},
		{"too large", []int{kindZstd}, frame(3 << 20), "more than the 2097152 bytes"},
		{"less", []int{kindZstd}, frame(4096), ""},
		{"cut", []int{kindZstd}, frame(blockSize)[:50], "unexpected EOF"},
		{"noise behind the frame", []int{kindZstd}, append(frame(blockSize), 1, 2, 3, 4, 5), "magic"},
	} {
		for _, kind := range c.kinds {
			t.Run(kindNames[kind]+"/"+c.name, func(t *testing.T) {
				w := &writer{kind: kind, size: blockSize}
				w.record(0, c.payload)
				d := codectest.Open(t, formatOf(kind), codectest.Bytes(w.image()))
				_, err := codectest.ReadAll(d)
				if c.text == "" && err != nil || c.text != "" && (!errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), c.text)) {
					t.Errorf("error %v, want %q", err, c.text)
				}
			})
		}
	}
}

// frame is a zstd frame of n zeros in repeated blocks.
func frame(n int) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0}
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	for n > 0 {
		k := min(n, 128<<10)
		n -= k
		h := k<<3 | 1<<1
		if n == 0 {
			h |= 1
		}
		b = append(b, byte(h), byte(h>>8), byte(h>>16), 0)
	}
	return b
}

// TestRecordOfAnotherBlock: the index says where a record is, the record whose.
func TestRecordOfAnotherBlock(t *testing.T) {
	for _, c := range []struct {
		name string
		off  int
		text string
	}{
		{"block", 4096 + 16, "is of block 1 and has 4096 bytes, want block 0"},
		{"magic", 4096, "begins with"},
		{"end", 8188, "it ends at 0x2000 with"},
	} {
		d := codectest.Open(t, Format2, codectest.Bytes(at(c.off, 1)(tiny(t, kindZlib))))
		if _, err := codectest.ReadAll(d); !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.text)
		}
	}
}

func TestNotesAndLeniency(t *testing.T) {
	for _, c := range []struct {
		name string
		kind int
		mend func(b []byte) []byte
		note string
	}{
		{"as written", kindStream, func(b []byte) []byte { return b }, ""},
		{"hidden, in the checksum", kindStream, mend(func(h []byte) { h[85] = 77 }), ""},
		{"hidden, not in the checksum", kindStream, func(b []byte) []byte { b[85], b[len(b)-4096+85] = 77, 77; return b }, ""},
		{"saved", kindZstd, mend(func(h []byte) { h[84] = 1 }), "suspended"},
		{"spare header damaged", kindStream, func(b []byte) []byte { b[len(b)-4000]++; return b }, "copy of the header at 0x3000 is damaged"},
		{"spare header damaged", kindZlib, func(b []byte) []byte { b[50]++; return b }, "copy of the header at 0x0 is damaged"},
		{"no original size", kindStream, mend(func(h []byte) { clear(h[40:48]) }), ""},
	} {
		d := codectest.Open(t, formatOf(c.kind), codectest.Bytes(c.mend(tiny(t, c.kind))))
		notes := strings.Join(d.(codec.Noted).Notes(), "; ")
		if c.note == "" && notes != "" || !strings.Contains(notes, c.note) {
			t.Errorf("%s: notes %q, want %q", c.name, notes, c.note)
		}
		want := int64(2*blockSize + 512)
		if c.name == "no original size" {
			want = giant
		}
		if d.Size() != want {
			t.Errorf("%s: a disk of %d bytes, want %d", c.name, d.Size(), want)
		}
	}
}

// TestHugeDiskInASmallFile: the memory of an opened disk follows from the file.
func TestHugeDiskInASmallFile(t *testing.T) {
	b := mend(func(h []byte) {
		le.PutUint64(h[40:], codec.MaxSize)
		le.PutUint64(h[48:], codec.MaxSize)
	})(tiny(t, kindStream))
	d, err := codectest.OpenHostile(Format, b)
	if err != nil || d == nil || d.Size() != codec.MaxSize {
		t.Fatalf("%v, %v", d, err)
	}
	p := make([]byte, 100)
	if n, err := d.ReadAt(t.Context(), p, codec.MaxSize-100); n != 100 || !codec.Empty(p) {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

// hostile opens b, which was tiny, and when it reads as another disk, wants
// what the second reader reads, if it reads anything.
func hostile(t *testing.T, kind int, b []byte, what string) {
	t.Helper()
	d, err := codectest.OpenHostile(formatOf(kind), b)
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if d == nil || d.Size() > 8<<20 {
		return
	}
	got, err := codectest.ReadAll(d)
	if err != nil || bytes.Equal(got, tinyDisk) {
		return
	}
	if want, err := naiveDisk(b); err == nil && !bytes.Equal(got[:min(len(got), len(want))], want[:min(len(got), len(want))]) {
		t.Errorf("%s: the second reader reads another disk", what)
	}
}

func TestTruncations(t *testing.T) {
	for kind, name := range kindNames {
		b := tiny(t, kind)
		for n := 0; n < len(b); n += 1 + n%509 {
			if d, err := codectest.OpenHostile(formatOf(kind), b[:n:n]); err != nil || d != nil {
				t.Fatalf("%s cut to %d bytes: opened as %v, or %v", name, n, d, err)
			}
		}
		for n := 0; n < len(b); n += 4096 {
			codectest.Refused(t, formatOf(kind), b[:n:n], map[bool]error{true: codec.ErrFormat, false: codec.ErrCorrupt}[n == 0], "")
		}
	}
}

func TestFlips(t *testing.T) {
	for kind, name := range kindNames {
		b, n := tiny(t, kind), 0
		// Headers and the heads and ends of records, the tables, and some of
		// the payloads.
		for off := 0; off < len(b); off++ {
			switch in := off % 4096; {
			case in < 48 && off%2 == 0, in >= 4092:
			case in < 150 && off%7 == 0, in < 512 && off%41 == 0:
			case b[off] != 0 && off%101 == 0:
			default:
				continue
			}
			if b[off] == 0 && off > 4*4096 && off < len(b)-4096 && off%211 != 0 {
				continue // the rest of an index
			}
			if every := 4 * codectest.Thin(4); !codectest.Thorough && (off/5)%every != kind {
				continue
			}
			n++
			b[off] ^= 1 << (off % 8)
			hostile(t, kind, b, name+" with a flipped bit")
			b[off] ^= 1 << (off % 8)
		}
		if t.Logf("%s: %d flips", name, n); n < 10 {
			t.Errorf("%s: %d flips, want 10 at least", name, n)
		}
	}
}

// TestMutations: bytes, ranges and lengths of anything, in any number.
func TestMutations(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	for kind, name := range kindNames {
		clean := tiny(t, kind)
		// Where something is: most of a ZVHD2 is the rest of its index.
		var places []int
		for off, c := range clean {
			if c != 0 && (off%4096 < 512 || off > 4096 && off < 3*4096) {
				places = append(places, off)
			}
		}
		n := 150 / codectest.Thin(4)
		if codectest.Thorough {
			n = 700
		}
		for range n {
			b := slices.Clone(clean)
			for range 1 + r.IntN(3) {
				off := places[r.IntN(len(places))]
				switch r.IntN(5) {
				case 0:
					b[off] = byte(r.Uint32())
				case 1:
					le.PutUint32(b[min(off, len(b)-4):], []uint32{0, 1, 1 << 31, 1<<32 - 1, 4096, blockSize, r.Uint32()}[r.IntN(7)])
				case 2:
					copy(b[off:], b[places[r.IntN(len(places))]:][:1])
				case 3:
					clear(b[off:min(off+r.IntN(64), len(b))])
				case 4: // a page in another's place
					p, q := r.IntN(len(b)/4096), r.IntN(min(5, len(b)/4096))
					copy(b[q*4096:(q+1)*4096], clean[p*4096:])
				}
			}
			if r.IntN(2) == 0 {
				sign(b[:4096])
				sign(b[len(b)-4096:])
			}
			hostile(t, kind, b, name)
		}
	}
}

// FuzzOpen opens bytes of any origin.
func FuzzOpen(f *testing.F) {
	for kind := range kindNames {
		f.Add(tiny(f, kind), kind == kindStream)
	}
	f.Fuzz(func(t *testing.T, b []byte, one bool) {
		format := Format2
		if one {
			format = Format
		}
		if _, err := codectest.OpenHostile(format, b); err != nil {
			t.Error(err)
		}
	})
}
