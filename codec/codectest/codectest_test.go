package codectest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagefs/codec"
)

func TestDiskIsOneDiskHoweverItIsRead(t *testing.T) {
	for _, d := range []*Disk{
		Full(5000, 1), Full(77777, 2).Soft(), Scattered(300000, 30, 3), LastSector(4097), LastBlock(200000, 4096),
		Alternating(50000, 512), New("bytes", 9000, 4, Range{1, 1}, Range{3, 2}, Range{17, 4000}, Range{4016, 3}, Range{8999, 5}), Empty(3000),
	} {
		t.Run(d.Name, func(t *testing.T) {
			whole, err := ReadAll(d)
			if err != nil {
				t.Fatal(err)
			}
			CheckRandom(t, d)
			checkExtents(t, d, d.Name)
			used := 0
			for _, r := range d.Runs() {
				for i := r.Off; i < r.Off+r.Len; i++ {
					used++
				}
				if r.Len >= 64 && codec.Empty(whole[r.Off:r.Off+r.Len]) {
					t.Errorf("run %+v has no data", r)
				}
			}
			for i := range whole {
				in := false
				for _, r := range d.Runs() {
					in = in || int64(i) >= r.Off && int64(i) < r.Off+r.Len
				}
				if !in && whole[i] != 0 {
					t.Fatalf("byte %d is data outside all runs", i)
				}
			}
			if other, _ := ReadAll(d.Seeded(99)); used >= 64 && bytes.Equal(other, whole) {
				t.Error("another seed has the same data")
			}
		})
	}
}

func TestDiskCountsReads(t *testing.T) {
	d := Full(1000, 1)
	d.ReadAt(context.Background(), make([]byte, 10), 0)
	d.ReadAt(context.Background(), make([]byte, 100), 950)
	for range d.Extents(context.Background(), 0, 1000) {
	}
	if d.Reads() != 2 || d.BytesRead() != 60 || d.Walks() != 1 {
		t.Errorf("%d reads of %d bytes and %d walks, want 2, 60 and 1", d.Reads(), d.BytesRead(), d.Walks())
	}
	d.FailRead = ErrBoom
	if n, err := d.ReadAt(context.Background(), make([]byte, 10), 0); n != 0 || err != ErrBoom {
		t.Errorf("failing: %d, %v", n, err)
	}
}

func TestExampleIsThatOfTheReference(t *testing.T) {
	for block, want := range map[int64]int64{64 * kib: 70, mib: 8, 2 * mib: 7, 32 * mib: 3} {
		m, err := codec.NewMap(context.Background(), Example(), block)
		if err != nil || m.Count() != want {
			t.Errorf("%d blocks of %d bytes (%v), want %d", m.Count(), block, err, want)
		}
	}
}

func TestNamesOfDisksDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range append(Disks(), Example()) {
		if seen[d.Name] {
			t.Errorf("two disks are called %s", d.Name)
		}
		seen[d.Name] = true
	}
}

func TestSources(t *testing.T) {
	ctx := context.Background()
	data := []byte("0123456789abcdef")
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	flip := bytes.Clone(data)
	flip[5] ^= 4
	for _, c := range []struct {
		name string
		src  codec.Source
		want []byte
	}{
		{"bytes", Bytes(data), data},
		{"file", File(t, path), data},
		{"truncated", Truncated(Bytes(data), 9), data[:9]},
		{"truncated to more", Truncated(Bytes(data), 99), data},
		{"flipped", Flip(Bytes(data), 42), flip},
		{"flipped twice", Flip(Flip(Bytes(data), 42), 42), data},
		{"with a budget", Bounded(Bytes(data), 1<<20, 1<<20), data},
		{"with a fault elsewhere", FaultyAt(Bytes(data), ErrBoom, 100, 9), data},
	} {
		if c.src.Size() != int64(len(c.want)) {
			t.Errorf("%s: %d bytes, want %d", c.name, c.src.Size(), len(c.want))
		}
		for off := range int64(len(c.want)) + 2 {
			for n := range 6 {
				p := make([]byte, n)
				got, err := c.src.ReadAt(ctx, p, off)
				want := c.want[min(off, int64(len(c.want))):]
				want = want[:min(n, len(want))]
				if got != len(want) || !bytes.Equal(p[:got], want) || got < n && err != io.EOF {
					t.Errorf("%s: read of %d at %d: %d, %v, %q, want %q", c.name, n, off, got, err, p[:got], want)
				}
			}
		}
	}
	b := Bounded(Bytes(data), 2, 9)
	p := make([]byte, 5)
	for i, want := range []error{nil, ErrBudget, ErrBudget} {
		if _, err := b.ReadAt(ctx, p, 0); err != want {
			t.Errorf("read %d of a budget of 9 bytes: %v, want %v", i, err, want)
		}
	}
	f := FaultyAt(Bytes(data), ErrBoom, 4, 4)
	for off, want := range []error{0: nil, 1: nil, 2: nil, 3: ErrBoom, 7: ErrBoom, 8: nil} {
		if _, err := f.ReadAt(ctx, p[:2], int64(off)); err != want && off != 4 && off != 5 && off != 6 {
			t.Errorf("read of 2 at %d: %v, want %v", off, err, want)
		}
	}
	g := Faulty(Bytes(data), ErrBoom, 1)
	for i, want := range []error{nil, ErrBoom, ErrBoom} {
		if _, err := g.ReadAt(ctx, p, 0); err != want {
			t.Errorf("read %d of a store that fails after one: %v, want %v", i, err, want)
		}
	}
}

// spoiled is a disk with a lie in it.
type spoiled struct {
	*Disk
	at      int64 // this byte is another; -1 for none
	extents []codec.Extent
}

func (d spoiled) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := d.Disk.ReadAt(ctx, p, off)
	if d.at >= off && d.at < off+int64(n) {
		p[d.at-off] ^= 1
	}
	return n, err
}

func (d spoiled) Extents(ctx context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	if d.extents == nil {
		return d.Disk.Extents(ctx, off, n)
	}
	return func(yield func(codec.Extent, error) bool) {
		for _, e := range d.extents {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// The alarms ring: each check finds the fault it is for.
func TestChecksFindFaults(t *testing.T) {
	good := New("good", 10000, 1, Range{2000, 1000})
	if err := errors.Join(Same(good, good), extentsErr(good)); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 100 {
		if Same(spoiled{good, r.Int64N(10000), nil}, good) == nil {
			t.Fatal("another byte is not seen")
		}
	}
	large := New("large", 3*tib, 1, Range{tib, 100000}, Range{2 * tib, 1})
	for _, at := range []int64{0, tib, tib - 1, tib + 99999, tib + 100000, 2 * tib, 2*tib + 1, 3*tib - 1} {
		if Same(spoiled{large, at, nil}, large) == nil {
			t.Errorf("another byte at %#x of a large disk is not seen", at)
		}
	}
	if Same(Empty(99), Empty(100)) == nil {
		t.Error("a shorter disk is not seen")
	}
	z := func(off, n int64) codec.Extent { return codec.Extent{Off: off, Len: n, Zero: true} }
	x := func(off, n int64) codec.Extent { return codec.Extent{Off: off, Len: n} }
	for name, es := range map[string][]codec.Extent{
		"data called zero": {z(0, 10000)}, "a late border": {z(0, 2001), x(2001, 999), z(3000, 7000)}, "a gap": {z(0, 1000), x(1001, 8999)},
		"an end too early": {x(0, 9999)}, "an end too late": {x(0, 10001)}, "an overlap": {z(0, 1500), x(1000, 9000)},
		"two that are one": {x(0, 5), x(5, 9995)}, "an empty one": {z(0, 0), x(0, 10000)}, "a false start": {x(1, 9999)},
		"no cut of ranges": {x(0, 10000)},
	} {
		if extentsErr(spoiled{good, -1, es}) == nil {
			t.Errorf("%s is not seen", name)
		}
	}
}

// opener is a format with any Open.
type opener func(context.Context, codec.Source) (codec.Disk, error)

func (opener) Name() string              { return "opener" }
func (opener) Probe(head, _ []byte) bool { return true }
func (o opener) Open(ctx context.Context, src codec.Source) (codec.Disk, error) {
	return o(ctx, src)
}

func (opener) Layout(context.Context, codec.Disk, codec.Facts) (*codec.File, error) {
	return new(codec.File), nil
}

var sink []byte

func TestOpenHostileFindsFaults(t *testing.T) {
	file := make([]byte, 5000)
	for _, c := range []struct {
		name string
		open opener
		want string
	}{
		{"a clean refusal", func(context.Context, codec.Source) (codec.Disk, error) { return nil, codec.Corruptf("x") }, ""},
		{"a good disk", func(context.Context, codec.Source) (codec.Disk, error) { return Full(9999, 1), nil }, ""},
		{"another error", func(context.Context, codec.Source) (codec.Disk, error) { return nil, io.ErrUnexpectedEOF }, "no clean refusal"},
		{"too much memory", func(context.Context, codec.Source) (codec.Disk, error) {
			sink = make([]byte, 64<<20)
			return nil, codec.ErrFormat
		}, "allocated"},
		{"endless reads", func(ctx context.Context, src codec.Source) (codec.Disk, error) {
			for {
				if err := codec.ReadFull(ctx, src, make([]byte, 1), 0, "x"); err != nil {
					return nil, err
				}
			}
		}, "budget"},
		{"a wrong size", func(context.Context, codec.Source) (codec.Disk, error) { return New("", -1, 1), nil }, "bytes"},
		{"failing reads", func(context.Context, codec.Source) (codec.Disk, error) {
			d := Full(9999, 1)
			d.FailRead = ErrBoom
			return d, nil
		}, "on fire"},
		{"a false hole", func(context.Context, codec.Source) (codec.Disk, error) {
			return spoiled{Full(9999, 1), -1, []codec.Extent{{Len: 9999, Zero: true}}}, nil
		}, "called zero"},
	} {
		_, err := OpenHostile(c.open, file)
		if c.want == "" && err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want an error that says %q", c.name, err, c.want)
		}
	}
}

func TestRawFilesAreSparseAndTrue(t *testing.T) {
	d := New("sparse", 3*gib+5, 1, Range{gib, 100000}, Range{3 * gib, 5})
	path := RawFile(t, d)
	if err := Same(rawSource{File(t, path)}, d); err != nil {
		t.Error(err)
	}
	qcow2 := Convert(t, "qcow2", path)
	Check(t, "qcow2", qcow2)
	Compare(t, "qcow2", qcow2, path)
}

type rawSource struct{ codec.Source }

func (s rawSource) Extents(context.Context, int64, int64) iter.Seq2[codec.Extent, error] { return nil }

func TestSameStream(t *testing.T) {
	for _, c := range []struct {
		got, want string
		same      bool
	}{
		{"", "", true}, {"abc", "abc", true}, {"abc\x00\x00", "abc", true}, {"abc", "abc\x00", false}, {"abd", "abc", false}, {"abcd", "abc", false},
	} {
		if err := sameStream(strings.NewReader(c.got), strings.NewReader(c.want)); (err == nil) != c.same {
			t.Errorf("%q and %q: %v", c.got, c.want, err)
		}
	}
}
