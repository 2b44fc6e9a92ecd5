package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// checkApplied compares a dirty image, as we read it, with the image that has
// the writes already.
func checkApplied(t *testing.T, b []byte, size int64, entries ...[]logWrite) codec.Disk {
	t.Helper()
	ctx := context.Background()
	d, err := Format.Open(ctx, codectest.Bytes(b))
	want, wantErr := Format.Open(ctx, codectest.Bytes(applied(b, size, entries...)))
	if err != nil || wantErr != nil {
		if err == nil || wantErr == nil || err.Error() != wantErr.Error() {
			t.Errorf("open: %v, want as if applied: %v", err, wantErr)
		}
		return nil
	}
	p, err := codectest.ReadAll(d)
	if err != nil {
		t.Fatal(err)
	}
	q, err := codectest.ReadAll(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, q) {
		t.Error("the disk is not what the applied log gives")
	}
	a, _ := codectest.Extents(d)
	w, _ := codectest.Extents(want)
	if fmt.Sprint(a) != fmt.Sprint(w) {
		t.Errorf("extents %v, want %v", a, w)
	}
	return d
}

// batPage is the first page of an image's BAT with entry i set.
func batPage(b []byte, i int, e uint64) []byte {
	p := append([]byte(nil), b[batAt:batAt+pageLen]...)
	le.PutUint64(p[8*i:], e)
	return p
}

// twoEntries are the writes of a log that changes all that there is: the BAT,
// the size in the metadata, and data, some of it twice.
func twoEntries(b []byte) (first, second []logWrite) {
	items := append([]byte(nil), b[metadataAt+metadataTable:][:pageLen]...)
	le.PutUint64(items[8:], 6*mib)
	first = []logWrite{
		{off: batAt, data: batPage(b, 2, spareAt|blockPresent)},
		{off: 4 * mib, data: page(1)},
		{off: spareAt + 40*kib, zero: 300 * kib},
		{off: 4*mib + 8*kib, data: page(2)},
	}
	second = []logWrite{
		{off: metadataAt + metadataTable, data: items},
		{off: 4 * mib, data: page(3)},
		{off: spareAt + 44*kib, data: page(4)},
		{off: 4*mib + 4*kib, zero: 4 * kib},
	}
	return first, second
}

func TestReplayIsWhatQemuMakes(t *testing.T) {
	for _, c := range []struct {
		name string
		at   int  // in the ring
		qemu bool // reads the log right
	}{
		{"from the start", 0, true},
		{"in the middle", 500 * kib, true},
		{"second entry wraps", mib - 28*kib, true},
		{"ends with the ring", mib - 32*kib, true},
		// Here an entry that begins a run for qemu, which does not look at the
		// tail that the entry names, stands before the run's true begin.
		{"first entry wraps", mib - 12*kib, false},
		{"second entry at the start", mib - 16*kib, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := layoutBytes(t)
			first, second := twoEntries(b)
			ring := ringOf(b)
			size := int64(len(b))
			e1 := makeEntry(7, int64(c.at), size, size, first...)
			next := putEntry(ring, c.at, e1)
			putEntry(ring, next, makeEntry(8, int64(c.at), size, size, second...))
			dirty(b)
			d := checkApplied(t, b, size, first, second)
			if d.Size() != 6*mib {
				t.Errorf("disk has %d bytes, want the %d that the log gives it", d.Size(), 6*mib)
			}
			if notes := d.(codec.Noted).Notes(); len(notes) != 1 || !strings.Contains(notes[0], "2 entries") {
				t.Errorf("notes %q, want one that tells of 2 entries", notes)
			}
			if c.qemu {
				checkReplay(t, b)
			}
		})
	}
}

// TestReplayOfQemuImage: a file that qemu-img made, of several blocks and with
// its own places of regions.
func TestReplayOfQemuImage(t *testing.T) {
	raw := codectest.RawFile(t, codectest.Scattered(20*mib, 15, 3))
	b, err := codectest.ReadAll(codectest.File(t, codectest.Convert(t, "vhdx", raw, "-o", "block_size=1M")))
	if err != nil {
		t.Fatal(err)
	}
	regions, err := currentRegions(b[:fixedLen])
	if err != nil {
		t.Fatal(err)
	}
	bat, _, err := findRegions(regions, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	// Two blocks change places, one is lost, and data in the last one changes.
	p := append([]byte(nil), b[bat.offset:bat.offset+pageLen]...)
	e0, e1 := le.Uint64(p), le.Uint64(p[8:])
	le.PutUint64(p, e1)
	le.PutUint64(p[8:], e0)
	le.PutUint64(p[16:], blockZero)
	size := int64(len(b))
	writes := []logWrite{{off: int64(bat.offset), data: p}, {off: size - 8*kib, data: page(9)}, {off: size - mib, zero: 64 * kib}}
	at := 64 * kib
	putEntry(ringOf(b), at, makeEntry(1<<40+5, int64(at), size, size, writes...))
	dirty(b)
	checkApplied(t, b, size, writes)
	checkReplay(t, b)
}

func TestReplayExtendsTheFile(t *testing.T) {
	b := layoutBytes(t)
	// The block at 7 MiB ends 1 MiB behind the file.
	writes := []logWrite{{off: batAt, data: batPage(b, 1, 7*mib|blockPresent)}, {off: 9*mib - pageLen, data: page(1)}}
	size := int64(len(b))
	putEntry(ringOf(b), 0, makeEntry(1, 0, size, 9*mib, writes...))
	dirty(b)
	checkApplied(t, b, 9*mib, writes)
	checkReplay(t, b)
}

// TestReplayChoosesTheActiveSequence: rings as they are after a crash.
func TestReplayChoosesTheActiveSequence(t *testing.T) {
	w := func(seed byte) []logWrite { return []logWrite{{off: 4 * mib, data: page(seed)}} }
	const long = 8 * kib // of an entry with one page
	size := int64(spareAt + 2*mib)
	entry := func(seq uint64, tail int64, seed byte) []byte { return makeEntry(seq, tail, size, size, w(seed)...) }
	torn := func(e []byte) []byte { e[len(e)-1]++; return e }
	stranger := func(e []byte) []byte { e[32]++; return reseal(e) }
	for _, c := range []struct {
		name    string
		at      []int
		entries [][]byte
		want    byte // seed of the page that wins, 0 for a corrupt log
	}{
		{"the last entry is torn", []int{0, long, 2 * long}, [][]byte{entry(5, 0, 1), entry(6, 0, 2), torn(entry(7, 0, 3))}, 2},
		{"an older sequence stands behind", []int{0, long, 99 * long}, [][]byte{entry(8, 0, 1), entry(9, 0, 2), entry(3, 99*long, 3)}, 2},
		{"an older sequence stands before", []int{0, 50 * long}, [][]byte{entry(3, 0, 1), entry(9, 50*long, 2)}, 2},
		{"the tail moved on", []int{0, long}, [][]byte{entry(5, 0, 1), entry(6, long, 2)}, 2},
		{"entries of another log", []int{0, long}, [][]byte{entry(5, 0, 1), stranger(entry(6, 0, 2))}, 1},
		{"a sequence number is missing", []int{0, long}, [][]byte{entry(5, 0, 1), entry(7, 0, 2)}, 1},
		{"the head's tail is torn", []int{0, long}, [][]byte{torn(entry(5, 0, 1)), entry(6, 0, 2)}, 0},
		{"the head's tail is in another run", []int{0, 50 * long}, [][]byte{torn(entry(3, 0, 1)), entry(9, 0, 2)}, 0},
		{"the tail is behind the ring", []int{0}, [][]byte{entry(5, mib, 1)}, 0},
		{"the tail is within a sector", []int{0}, [][]byte{entry(5, 512, 1)}, 0},
		{"the tail is behind the head", []int{0, long}, [][]byte{entry(5, 0, 1), entry(6, 4*long, 2)}, 0},
		{"two heads with one number", []int{0, 50 * long}, [][]byte{entry(9, 0, 1), entry(9, 50*long, 2)}, 0},
		{"sequence number 0", []int{0}, [][]byte{entry(0, 0, 1)}, 0},
		{"nothing at all", nil, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := layoutBytes(t)
			for i, e := range c.entries {
				putEntry(ringOf(b), c.at[i], e)
			}
			dirty(b)
			if c.want == 0 {
				_, err := Format.Open(context.Background(), codectest.Bytes(b))
				if !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), "log") {
					t.Errorf("error %v, want %v that tells of the log", err, codec.ErrCorrupt)
				}
				return
			}
			checkApplied(t, b, size, w(c.want))
		})
	}
}

func TestReplayRefuses(t *testing.T) {
	size := int64(spareAt + 2*mib)
	data := func(off int64) logWrite { return logWrite{off: off, data: page(1)} }
	good := data(4 * mib)
	edit := func(f func(e []byte)) []byte {
		e := makeEntry(5, 0, size, size, good)
		f(e)
		return reseal(e)
	}
	desc := func(f func(d []byte)) []byte { return edit(func(e []byte) { f(e[entryHeaderLen:]) }) }
	for _, c := range []struct {
		name  string
		entry []byte
		text  string
	}{
		{"a truncated file", makeEntry(5, 0, size+1, size+mib, good), "truncated: the log says that at least 8388609 bytes"},
		{"a file of 16 EiB", makeEntry(5, 0, size, -1, good), "last file offset 0xffffffffffffffff"},
		{"a write over the identifier", makeEntry(5, 0, size, size, data(0)), "to 0x0"},
		{"a write over a header", makeEntry(5, 0, size, size, data(header1At)), "to 0x10000"},
		{"zeros over the headers", makeEntry(5, 0, size, size, logWrite{off: header1At, zero: 8 * mib}), "to 0x10000"},
		{"a write over the log", makeEntry(5, 0, size, size, data(logAt)), "to 0x100000"},
		{"zeros over the log", makeEntry(5, 0, size, size, logWrite{off: 2*mib - 4096, zero: 8192}), "to 0x1ff000"},
		{"a write past the end", makeEntry(5, 0, size, size, data(size)), "to 0x800000"},
		{"zeros past the end", makeEntry(5, 0, size, size, logWrite{off: size - 4096, zero: 8192}), "to 0x7ff000"},
		{"zeros for ever", makeEntry(5, 0, size, size, logWrite{off: 4 * mib, zero: 1<<63 - 4096}), "zero descriptor with length 0x7ffffffffffff000"},
		{"zeros of no whole page", makeEntry(5, 0, size, size, logWrite{off: 4 * mib, zero: 512}), "zero descriptor with length 0x200"},
		{"a write to no page", desc(func(d []byte) { d[16] = 1 }), "file offset 0x400001"},
		{"a write to an offset of 64 bits", desc(func(d []byte) { d[23] = 0xff }), "file offset 0xff00000000400000"},
		{"a descriptor of another entry", desc(func(d []byte) { d[24]++ }), "descriptor with sequence number 0x6"},
		{"an unknown descriptor", desc(func(d []byte) { d[0] = 'D' }), "descriptor with signature"},
		{"a data sector without signature", edit(func(e []byte) { e[pageLen] = 'D' }), "data sector with signature"},
		{"a data sector of another entry", edit(func(e []byte) { e[pageLen+4] = 1 }), "data sector with sequence number 0x100000005"},
		{"a torn data sector", edit(func(e []byte) { e[2*pageLen-1] = 1 }), "data sector with sequence number 0x1000005"},
		{"more descriptors than the entry holds", edit(func(e []byte) { le.PutUint32(e[24:], 1<<31) }), "descriptor count 0x80000000"},
		{"more data descriptors than sectors", edit(func(e []byte) {
			copy(e[entryHeaderLen+descriptorLen:], e[entryHeaderLen:entryHeaderLen+descriptorLen])
			e[24] = 2
		}), "fewer data sectors"},
		{"an entry longer than the log", edit(func(e []byte) { le.PutUint32(e[8:], mib+pageLen) }), "no complete sequence"},
		{"an entry of no length", edit(func(e []byte) { le.PutUint32(e[8:], 0) }), "no complete sequence"},
		{"an entry of no whole sector", edit(func(e []byte) { le.PutUint32(e[8:], 8000) }), "no complete sequence"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := layoutBytes(t)
			putEntry(ringOf(b), 0, c.entry)
			dirty(b)
			_, err := Format.Open(context.Background(), codectest.Bytes(b))
			if !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %v that tells %q", err, codec.ErrCorrupt, c.text)
			}
		})
	}
	t.Run("a log version", func(t *testing.T) {
		b := layoutBytes(t)
		putEntry(ringOf(b), 0, makeEntry(5, 0, size, size, good))
		b[header1At+64], b[header2At+64] = 1, 1
		dirty(b)
		_, err := Format.Open(context.Background(), codectest.Bytes(b))
		if !errors.Is(err, codec.ErrUnsupported) || !strings.Contains(err.Error(), "log version 1") {
			t.Errorf("error %v, want %v", err, codec.ErrUnsupported)
		}
	})
	t.Run("a log too long", func(t *testing.T) {
		b := layoutBytes(t)
		headers(func(b []byte) { le.PutUint32(b[68:], 65*mib); le.PutUint64(b[72:], 8*mib) })(b)
		dirty(b)
		_, err := Format.Open(context.Background(), newOverlay(codectest.Bytes(b), 73*mib, nil, nil))
		if !errors.Is(err, codec.ErrUnsupported) || !strings.Contains(err.Error(), "68157440 bytes") {
			t.Errorf("error %v, want %v", err, codec.ErrUnsupported)
		}
	})
}

// TestReplayOfHostileRings: logs made to take time end soon.
func TestReplayOfHostileRings(t *testing.T) {
	const ringLen = 4 * mib
	make4 := func(fill func(ring []byte, size int64)) []byte {
		b := append(layoutBytes(t), make([]byte, ringLen)...)
		headers(func(b []byte) { le.PutUint32(b[68:], ringLen); le.PutUint64(b[72:], 8*mib) })(b)
		fill(ringOf(b), int64(len(b)))
		dirty(b)
		return b
	}
	run := func(name string, b []byte, text string) {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := Format.Open(context.Background(), codectest.Bytes(b))
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("open took %v", took)
			}
			if text == "" && err != nil || text != "" && (!errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), text)) {
				t.Errorf("error %v, want %q", err, text)
			}
		})
	}
	zeros := make([]logWrite, (pageLen-entryHeaderLen)/descriptorLen)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range zeros {
		zeros[i] = logWrite{off: 4*mib + r.Int64N(512)*4*kib, zero: 4 * kib * (1 + r.Int64N(400))}
	}
	run("a hundred thousand writes over each other", make4(func(ring []byte, size int64) {
		for at, seq := 0, uint64(1); at < len(ring); at, seq = at+pageLen, seq+1 {
			copy(ring[at:], makeEntry(seq, 0, size, size, zeros...))
		}
	}), "")
	run("every sector an entry of the whole ring", make4(func(ring []byte, size int64) {
		for at := 0; at < len(ring); at += pageLen {
			e := makeEntry(uint64(at+1), 0, size, size)
			le.PutUint32(e[8:], ringLen)
			copy(ring[at:], e)
		}
	}), "entries overlap")
	run("many heads on one tail", make4(func(ring []byte, size int64) {
		half := len(ring) / 2
		for at, seq := 0, uint64(1); at < half; at, seq = at+pageLen, seq+1 {
			copy(ring[at:], makeEntry(seq, -1, size, size))
			copy(ring[half+at:], makeEntry(1e6-2*seq, 0, size, size))
		}
	}), "no complete sequence")
	run("round and round", make4(func(ring []byte, size int64) {
		// The last entry ends where the first begins, and would go on with it.
		for at, seq := 0, ^uint64(0)-ringLen/pageLen+1; at < len(ring); at, seq = at+pageLen, seq+1 {
			copy(ring[at:], makeEntry(seq, 0, size, size))
		}
	}), "")
}

// TestOverlayIsWritesInOrder holds the overlay to writes on a copy.
func TestOverlayIsWritesInOrder(t *testing.T) {
	const pages = 64
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		file := make([]byte, (pages/2+r.Int64N(pages/2))*pageLen-r.Int64N(100))
		for i := range file {
			file[i] = 0xee
		}
		ring := make([]byte, 8*pageLen)
		for i := range ring {
			ring[i] = byte(i>>12) + 1
		}
		want := make([]byte, pages*pageLen)
		copy(want, file)
		var writes []patch
		for range r.IntN(40) {
			w := patch{off: r.Int64N(pages) * pageLen, at: zeroData}
			w.end = w.off + pageLen
			if r.IntN(2) == 0 {
				w.at = r.Int64N(8) * pageLen
				copy(want[w.off:], ring[w.at:w.at+pageLen])
			} else {
				w.end += r.Int64N(pages-w.off/pageLen) * pageLen
				clear(want[w.off:w.end])
			}
			writes = append(writes, w)
		}
		o := newOverlay(codectest.Bytes(file), pages*pageLen, ring, writes)
		for i := 1; i < len(o.patches); i++ {
			if o.patches[i].off < o.patches[i-1].end {
				t.Fatalf("seed %d: patches %v overlap", seed, o.patches)
			}
		}
		got, err := codectest.ReadAll(o)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: the overlay differs from the writes on a copy", seed)
		}
		for range 30 {
			off := r.Int64N(int64(len(want)))
			p := make([]byte, r.Int64N(int64(len(want))-off+1))
			if n, err := o.ReadAt(context.Background(), p, off); n < len(p) || !bytes.Equal(p, want[off:off+int64(n)]) {
				t.Fatalf("seed %d: read of %d bytes at %#x: %d, %v", seed, len(p), off, n, err)
			}
		}
	}
}

func TestOverlayFailsWhereTheFileFails(t *testing.T) {
	file := codectest.FaultyAt(codectest.Bytes(make([]byte, 8*pageLen)), codectest.ErrBoom, 2*pageLen, pageLen)
	ring := page(1)
	o := newOverlay(file, 0, ring, []patch{{off: pageLen, end: 2 * pageLen, at: 0}})
	p := make([]byte, pageLen)
	if n, err := o.ReadAt(context.Background(), p, pageLen); n < len(p) || !bytes.Equal(p, ring) {
		t.Errorf("read of a patch: %d, %v", n, err)
	}
	if n, err := o.ReadAt(context.Background(), p, pageLen+1); n != 0 || !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("read over the bad page: %d, %v, want 0 and the store's error", n, err)
	}
}
