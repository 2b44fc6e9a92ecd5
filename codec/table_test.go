package codec_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// model is a table and, byte by byte, what it must show.
type model struct {
	t     *codec.Table
	block int64
	want  []byte
	zero  []bool // per 1/32 of a block
	src   []byte
}

// newModel places the blocks of a random disk anywhere in a source: some beside
// each other, some encoded, some with masks, the last one maybe cut short.
func newModel(t testing.TB, r *rand.Rand, encode bool) *model {
	block := int64(512) << r.IntN(4)
	n := 1 + r.Int64N(60)
	size := (n-1)*block + 1 + r.Int64N(block)
	per := 1 + r.Int64N(9)
	m := &model{block: block, want: make([]byte, n*block), zero: make([]bool, n*32)}

	// Slots in the source, with a gap before each, in an order that is often
	// that of the blocks, so that neighbours are neighbours.
	base := 1 + r.Int64N(600)
	slots := make([]int64, n)
	for i := range slots {
		slots[i] = base + int64(i)*block
	}
	last := slots[n-1]
	if r.IntN(2) == 0 {
		k := r.IntN(int(n))
		r.Shuffle(k, func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
	}
	end := last + block
	short := r.IntN(3) == 0
	if short {
		end = last + 1 + r.Int64N(block)
	}
	m.src = make([]byte, end)
	for i := range m.src {
		m.src[i] = byte(1 + r.IntN(255))
	}
	m.t = codec.NewTable(codectest.Bytes(m.src), size, block, per)
	m.t.ShortTail = short
	key := r.Uint64()
	m.t.Decode = func(_ context.Context, e codec.Entry, dst []byte) error {
		if int64(len(dst)) != block {
			return errors.New("decode of less than a block")
		}
		decodeTo(dst, uint64(e&^codec.Encoded)^key)
		return nil
	}
	for i := range n {
		at := i * block
		dst := m.want[at : at+block]
		parts := m.zero[i*32 : i*32+32]
		switch kind := r.IntN(10); {
		case kind < 3:
			for k := range parts {
				parts[k] = true
			}
			continue
		case kind == 3 && encode:
			e := codec.Entry(r.Uint64N(1 << 40))
			if err := m.t.SetEncoded(i, e, slots[i], min(block, end-slots[i])); err != nil {
				t.Fatal(err)
			}
			decodeTo(dst, uint64(e)^key)
		default:
			if err := m.t.Set(i, slots[i]); err != nil {
				t.Fatal(err)
			}
			copy(dst, m.src[slots[i]:min(end, slots[i]+block)])
		}
		if r.IntN(4) == 0 {
			mask := r.Uint32()
			if r.IntN(3) == 0 {
				mask = ^uint32(0) >> r.IntN(32) << r.IntN(32)
			}
			m.t.SetMask(i, mask)
			for k := range int64(32) {
				if mask>>k&1 == 1 {
					parts[k] = true
					clear(dst[k*block/32 : (k+1)*block/32])
				}
			}
		}
	}
	m.want = m.want[:size]
	if err := m.t.Seal(); err != nil {
		t.Fatal(err)
	}
	return m
}

func decodeTo(p []byte, x uint64) {
	for i := range p {
		x = x*6364136223846793005 + 1442695040888963407
		p[i] = byte(x>>56) | 1
	}
}

func (m *model) extents(off, n int64) []codec.Extent {
	return naiveExtents(invert(m.zero), m.block/32, int64(len(m.want)), off, n)
}

func invert(a []bool) []bool {
	b := make([]bool, len(a))
	for i := range a {
		b[i] = !a[i]
	}
	return b
}

// checkReads compares reads of d at random with the bytes it must have.
func checkReads(t *testing.T, r *rand.Rand, d codec.Source, want []byte, rounds int) {
	t.Helper()
	size := int64(len(want))
	buf := make([]byte, size+600)
	for range rounds {
		off := r.Int64N(size + 2)
		p := buf[:r.Int64N(int64(len(buf)))]
		if r.IntN(2) == 0 {
			p = buf[:r.IntN(64)]
		}
		for i := range p {
			p[i] = 0xee
		}
		n, err := d.ReadAt(context.Background(), p, off)
		exp := want[min(off, size):min(off+int64(len(p)), size)]
		wantErr := error(nil)
		if len(exp) < len(p) || off >= size {
			wantErr = io.EOF
		}
		if n != len(exp) || err != wantErr {
			t.Fatalf("read of %d bytes at %d of %d: %d, %v, want %d, %v", len(p), off, size, n, err, len(exp), wantErr)
		}
		if !bytes.Equal(p[:n], exp) {
			t.Fatalf("read of %d bytes at %d of %d: wrong bytes", len(p), off, size)
		}
	}
}

func TestTableEqualsItsModel(t *testing.T) {
	r := random(t)
	for range 300 {
		m := newModel(t, r, r.IntN(2) == 0)
		size := int64(len(m.want))
		if m.t.Size() != size || m.t.Block() != m.block || m.t.Blocks() != codec.Ceil(size, m.block) {
			t.Fatalf("table of %d bytes in %d blocks of %d", m.t.Size(), m.t.Blocks(), m.t.Block())
		}
		checkReads(t, r, m.t, m.want, 30)
		for range 20 {
			off, n := r.Int64N(size+100)-50, r.Int64N(size+100)
			if got, want := gather(t, m.t, off, n), m.extents(off, n); !slices.Equal(got, want) {
				t.Fatalf("extents of [%d, +%d) of %d in blocks of %d: %v, want %v", off, n, size, m.block, got, want)
			}
		}
	}
}

func TestTableReadsRunsInOneCall(t *testing.T) {
	const block = 4096
	b := make([]byte, 20*block)
	for i := range b {
		b[i] = byte(i / 7)
	}
	src := codectest.Bounded(codectest.Bytes(b), 1<<30, 1<<30)
	tab := codec.NewTable(src, 16*block, block, 3)
	for i := range int64(16) {
		if err := tab.Set(i, 100+i*block); err != nil {
			t.Fatal(err)
		}
	}
	if err := tab.Seal(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 16*block-1)
	if n, err := tab.ReadAt(context.Background(), p, 1); n != len(p) || err != nil {
		t.Fatal(n, err)
	}
	if !bytes.Equal(p, b[101:101+len(p)]) {
		t.Error("wrong bytes")
	}
	if reads, n := src.Used(); reads != 1 || n != int64(len(p)) {
		t.Errorf("%d reads of %d bytes, want one of %d", reads, n, len(p))
	}
	if tab.Unit() != 0 {
		t.Errorf("unit %d of a table without encoded blocks, want 0", tab.Unit())
	}
	if got := testing.AllocsPerRun(100, func() { tab.ReadAt(context.Background(), p, 1) }); got != 0 {
		t.Errorf("a read allocates %v times, want 0", got)
	}
}

func TestTableRefusesWhatBreaksItsRules(t *testing.T) {
	const block, size = 4096, 100000
	for _, c := range []struct {
		name string
		make func(*codec.Table) error
		want string // a part of the error; empty for none
	}{
		{"nothing", func(t *codec.Table) error { return nil }, ""},
		{"a block at the end", func(t *codec.Table) error { return t.Set(0, size-block) }, ""},
		{"a block one byte late", func(t *codec.Table) error { return t.Set(0, size-block+1) }, "cut by the end"},
		{"the last block, of which the guest needs 10 bytes", func(t *codec.Table) error { return t.Set(9, size-10) }, ""},
		{"the last block, 9 bytes of it", func(t *codec.Table) error { return t.Set(9, size-9) }, "cut by the end"},
		{"a short tail", func(t *codec.Table) error { t.ShortTail = true; return t.Set(3, size-1) }, ""},
		{"behind the end", func(t *codec.Table) error { t.ShortTail = true; return t.Set(3, size) }, "past the end"},
		{"at zero", func(t *codec.Table) error { return t.Set(3, 0) }, "past the end"},
		{"negative", func(t *codec.Table) error { return t.Set(3, -4096) }, "past the end"},
		{"far away", func(t *codec.Table) error { return t.Set(3, 1<<63-1) }, "past the end"},
		{"a block behind the disk", func(t *codec.Table) error { return t.Set(10, 4096) }, "of a disk of 10 blocks"},
		{"a block before the disk", func(t *codec.Table) error { return t.Set(-1, 4096) }, "of a disk of 10 blocks"},
		{"an encoded block behind the disk", func(t *codec.Table) error { return t.SetEncoded(10, 1, 4096, 1) }, "of a disk of 10 blocks"},
		{"an encoded block behind the end", func(t *codec.Table) error { return t.SetEncoded(1, 1, size-1, 2) }, "past the end"},
		{"a claim to the end", func(t *codec.Table) error { return t.Claim(0, size, "it") }, ""},
		{"a claim over the end", func(t *codec.Table) error { return t.Claim(1, size, "grain table 7") }, "grain table 7"},
		{"a negative claim", func(t *codec.Table) error { return t.Claim(-1, 1, "it") }, "past the end"},
		{"a claim of negative length", func(t *codec.Table) error { return t.Claim(1, -1, "it") }, "past the end"},
		{"a claim that overflows", func(t *codec.Table) error { return t.Claim(1<<62, 1<<62, "it") }, "past the end"},
		{"an empty claim", func(t *codec.Table) error { return errors.Join(t.Claim(5, 0, "it"), t.Claim(5, 0, "it")) }, ""},
		{"one block twice", func(t *codec.Table) error { return errors.Join(t.Set(0, 4096), t.Set(1, 4096)) }, "share"},
		{"blocks that overlap by a byte", func(t *codec.Table) error { return errors.Join(t.Set(1, 4096), t.Set(0, 8191)) }, "share"},
		{"blocks that touch", func(t *codec.Table) error { return errors.Join(t.Set(1, 8192), t.Set(0, 4096), t.Set(2, 12288)) }, ""},
		{"a block in a table", func(t *codec.Table) error { return errors.Join(t.Claim(0, 65536, "table"), t.Set(0, 40960)) }, "share"},
		{"a table in a block", func(t *codec.Table) error { return errors.Join(t.Set(0, 4096), t.Claim(5000, 1, "table")) }, "share"},
		{"an encoded block in another", func(t *codec.Table) error {
			return errors.Join(t.SetEncoded(0, 1, 4096, 100), t.SetEncoded(1, 1, 4195, 100))
		}, "share"},
		{"a block under a merged claim", func(t *codec.Table) error {
			return errors.Join(t.Claim(100, 100, "a"), t.Claim(200, 9000, "b"), t.Set(0, 4096))
		}, "share"},
	} {
		tab := codec.NewTable(codectest.Bytes(make([]byte, size)), 9*block+10, block, 4)
		err := c.make(tab)
		if err == nil {
			err = tab.Seal()
		}
		if c.want == "" && err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if c.want != "" && (!errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %v that says %q", c.name, err, codec.ErrCorrupt, c.want)
		}
	}
}

func TestTableOfTheLargestDisk(t *testing.T) {
	const block = 1 << 32
	src := codectest.Full(codec.MaxSize, 1)
	tab := codec.NewTable(src, codec.MaxSize, block, 1<<20)
	last := tab.Blocks() - 1
	if err := tab.Set(last, 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := tab.Seal(); err != nil {
		t.Fatal(err)
	}
	es := gather(t, tab, 0, codec.MaxSize)
	if len(es) != 2 || !es[0].Zero || es[1].Zero || es[1].Off != last*block || es[1].Off+es[1].Len != codec.MaxSize {
		t.Errorf("extents %+v", es)
	}
	p := make([]byte, 100)
	n, err := tab.ReadAt(context.Background(), p, codec.MaxSize-50)
	if n != 50 || err != io.EOF || codec.Empty(p[:50]) {
		t.Errorf("read at the end: %d, %v, %x", n, err, p[:n])
	}
	n, err = tab.ReadAt(context.Background(), p, 1<<62)
	if n != 100 || err != nil || !codec.Empty(p) {
		t.Errorf("read of a hole: %d, %v", n, err)
	}
}

func TestTableErrorsOfReads(t *testing.T) {
	ctx := context.Background()
	const block = 512
	boom := errors.New("no such code")
	tab := codec.NewTable(codectest.FaultyAt(codectest.Bytes(make([]byte, 8192)), codectest.ErrBoom, 1024, 512), 4*block, block, 2)
	tab.Decode = func(context.Context, codec.Entry, []byte) error { return boom }
	if err := errors.Join(tab.Set(0, 512), tab.Set(1, 1024), tab.SetEncoded(3, 7, 4096, 10), tab.Seal()); err != nil {
		t.Fatal(err)
	}
	if tab.Unit() != block {
		t.Errorf("unit %d, want %d", tab.Unit(), block)
	}
	for _, c := range []struct {
		off, n int64
		got    int
		want   error
	}{
		{0, 512, 512, nil},
		{0, 513, 0, codectest.ErrBoom}, // both in one call
		{1024, 512, 512, nil},
		{1024, 513, 512, boom},
		{1024, 1024, 512, boom},
		{1600, 3, 0, boom},
		{-1, 3, 0, nil},
	} {
		n, err := tab.ReadAt(ctx, make([]byte, c.n), c.off)
		if n != c.got || c.want != nil && !errors.Is(err, c.want) || c.off < 0 && err == nil || c.off >= 0 && c.want == nil && err != nil {
			t.Errorf("read of %d bytes at %d: %d, %v, want %d, %v", c.n, c.off, n, err, c.got, c.want)
		}
	}
	// A source that is shorter than it said is no end of the disk.
	lying := codec.NewTable(liar{codectest.Bytes(make([]byte, 1000)), 8192}, 4*block, block, 2)
	if err := errors.Join(lying.Set(0, 512), lying.Seal()); err != nil {
		t.Fatal(err)
	}
	if n, err := lying.ReadAt(ctx, make([]byte, 512), 0); err != io.ErrUnexpectedEOF || n != 488 {
		t.Errorf("read of a source cut short: %d, %v, want 488, %v", n, err, io.ErrUnexpectedEOF)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	for _, err := range tab.Extents(cancelled, 0, 2048) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("extents, cancelled: %v", err)
		}
	}
}

// liar says that it is longer than it is.
type liar struct {
	codec.Source
	size int64
}

func (l liar) Size() int64 { return l.size }

func TestTableIsReadByManyAtOnce(t *testing.T) {
	r := random(t)
	m := newModel(t, r, true)
	seed := r.Uint64()
	var wg sync.WaitGroup
	for g := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, g))
			buf := make([]byte, len(m.want))
			for range 200 {
				off := r.IntN(len(m.want))
				p := buf[:r.IntN(len(m.want)-off)]
				if n, err := m.t.ReadAt(context.Background(), p, int64(off)); n < len(p) || !bytes.Equal(p, m.want[off:off+n]) {
					t.Errorf("read of %d at %d: %d, %v, or wrong bytes", len(p), off, n, err)
					return
				}
				if n := int64(len(p)); !slices.Equal(gather(t, m.t, int64(off), n), m.extents(int64(off), n)) {
					t.Errorf("extents of [%d, +%d)", off, n)
				}
			}
		})
	}
	wg.Wait()
}

func TestReadPartsGivesWhatReaderAtPromises(t *testing.T) {
	boom := errors.New("boom")
	// Parts of at most 3 bytes, and none from 10 on.
	part := func(_ context.Context, p []byte, off int64) (int, error) {
		n := 0
		for ; n < len(p) && n < 3; n++ {
			if off+int64(n) == 10 {
				return n, boom
			}
			p[n] = byte(off) + byte(n)
		}
		return n, nil
	}
	for _, c := range []struct {
		off, size int64
		n, want   int
		err       error
	}{
		{0, 10, 10, 10, nil},
		{0, 10, 11, 10, io.EOF},
		{10, 10, 1, 0, io.EOF},
		{11, 10, 0, 0, io.EOF},
		{9, 10, 5, 1, io.EOF},
		{3, 10, 0, 0, nil},
		{0, 20, 20, 10, boom},
		{8, 20, 5, 2, boom},
		{0, 0, 5, 0, io.EOF},
	} {
		p := make([]byte, c.n)
		n, err := codec.ReadParts(context.Background(), p, c.off, c.size, part)
		if n != c.want || err != c.err {
			t.Errorf("%d bytes at %d of %d: %d, %v, want %d, %v", c.n, c.off, c.size, n, err, c.want, c.err)
		}
		for i := range p[:n] {
			if p[i] != byte(c.off)+byte(i) {
				t.Errorf("%d bytes at %d: wrong bytes", c.n, c.off)
				break
			}
		}
	}
	if n, err := codec.ReadParts(context.Background(), nil, -1, 5, part); n != 0 || err == nil || err == io.EOF {
		t.Errorf("at -1: %d, %v", n, err)
	}
}
