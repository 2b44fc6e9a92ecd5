package vmdk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	stdadler "hash/adler32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// naive writes a streamOptimized file as the reference draws it, from end to
// end: what positions by arithmetic have to agree with.
func naive(d codec.Disk, m *codec.Map) []byte {
	var b bytes.Buffer
	w64 := func(v uint64) { b.Write(le.AppendUint64(nil, v)) }
	w32 := func(v uint32) { b.Write(le.AppendUint32(nil, v)) }
	pad := func() { b.Write(make([]byte, (sector-b.Len()%sector)%sector)) }
	b.Write(make([]byte, 128*sector))
	groups := codec.Ceil(m.Blocks(), 512)
	dir := make([]uint32, groups)
	for g := range groups {
		var table [512]uint32
		used := false
		for x := range int64(512) {
			i := g*512 + x
			if !m.Has(i) {
				continue
			}
			used = true
			table[x] = uint32(b.Len() / sector)
			p := make([]byte, 65536)
			d.ReadAt(context.Background(), p, i*65536)
			w64(uint64(i * 128))
			w32(65552)
			b.WriteString("\x78\x01\x00\x00\x80\xff\x7f")
			b.Write(p[:32768])
			b.WriteString("\x01\x00\x80\xff\x7f")
			b.Write(p[32768:])
			s := stdadler.Checksum(p)
			b.Write([]byte{byte(s >> 24), byte(s >> 16), byte(s >> 8), byte(s)})
			pad()
		}
		if !used {
			continue
		}
		w64(4)
		w32(0)
		w32(1)
		pad()
		dir[g] = uint32(b.Len() / sector)
		for _, e := range table {
			w32(e)
		}
	}
	w64(uint64(codec.Ceil(4*groups, 512)))
	w32(0)
	w32(2)
	pad()
	for _, e := range dir {
		w32(e)
	}
	pad()
	w64(1)
	w32(0)
	w32(3)
	pad()
	b.Write(make([]byte, 2*sector))
	return b.Bytes()
}

// TestStreamBytes compares the file with one that is written from end to end,
// whole, in windows, and byte by byte around every border.
func TestStreamBytes(t *testing.T) {
	ctx := context.Background()
	for _, d := range []*codectest.Disk{
		codectest.Empty(mib),
		codectest.Full(3*mib+100, 1),
		codectest.New("groups", 140*mib, 2, codectest.Range{Off: 0, Len: 2 * mib}, codectest.Range{Off: 32*mib - 1, Len: 100000},
			codectest.Range{Off: 100 * mib, Len: 1}, codectest.Range{Off: 139 * mib, Len: mib}),
	} {
		m, err := codec.NewMap(ctx, d, grainLen)
		if err != nil {
			t.Fatal(err)
		}
		want := naive(d, m)
		f, err := Format.Layout(ctx, d, codectest.TestFacts())
		if err != nil {
			t.Fatal(err)
		}
		got, err := codectest.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("%s: %d bytes, want %d", d.Name, len(got), len(want))
		}
		// Headers are other tests' business.
		copy(want, got[:128*sector])
		copy(want[len(want)-2*sector:], got[len(got)-2*sector:])
		if !bytes.Equal(got, want) {
			t.Fatalf("%s: other bytes than a file written from end to end", d.Name)
		}
		r := rand.New(rand.NewPCG(1, 2))
		p := make([]byte, 300*kib)
		for range 500 {
			at := r.IntN(len(want))
			if r.IntN(2) == 0 { // around what a record has
				marks := []int{0, 8, 12, 19, 32787, 32792, 65560, 65564}
				at = max(0, at/recordLen*recordLen+marks[r.IntN(len(marks))]+r.IntN(9)-4)
			}
			n := min(r.IntN(len(p)), len(want)-at)
			if r.IntN(2) == 0 {
				n = min(r.IntN(40), len(want)-at)
			}
			if n <= 0 {
				continue
			}
			q := p[:n]
			for i := range q {
				q[i] = 0xa5
			}
			if m, err := f.ReadAt(ctx, q, int64(at)); m < n {
				t.Fatal(err)
			}
			if !bytes.Equal(q, want[at:at+n]) {
				t.Fatalf("%s: other bytes in a read of %d at %#x", d.Name, n, at)
			}
		}
	}
}

// TestGuestReads: a sequential reader costs few and large reads of the guest,
// which read little twice, and the bytes around the guest's cost none.
func TestGuestReads(t *testing.T) {
	ctx := context.Background()
	d := codectest.Full(64*mib, 1)
	f, err := Format.Layout(ctx, d, codectest.TestFacts())
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, mib)
	for off := int64(0); off < f.Size(); off += mib {
		if n, err := f.ReadAt(ctx, p, off); n == 0 {
			t.Fatal(err)
		}
	}
	if n := d.Reads(); n > 4*64 {
		t.Errorf("reading 64 MiB by 1 MiB took %d reads of the guest, want 4 each at most", n)
	}
	if n := d.BytesRead(); n > 64*mib*106/100 {
		t.Errorf("reading 64 MiB by 1 MiB read %d bytes of the guest", n)
	}
	reads := d.Reads()
	for _, r := range [][2]int64{{0, 19}, {32787, 5}, {65564, 484}} {
		if n, err := f.ReadAt(ctx, p[:r[1]], streamFirst*sector+7*recordLen+r[0]); n == 0 {
			t.Fatal(err)
		}
	}
	if n := d.Reads() - reads; n != 0 {
		t.Errorf("heads and padding of a record read the guest %d times, want 0", n)
	}
	if n, err := f.ReadAt(ctx, p[:recordLen-100], streamFirst*sector+7*recordLen+100); n == 0 {
		t.Fatal(err)
	}
	if n := d.Reads() - reads; n != 1 {
		t.Errorf("a cut record with its checksum read the guest %d times, want once", n)
	}
}

// TestTooLarge: sectors are counted in 32 bits.
func TestTooLarge(t *testing.T) {
	ctx := context.Background()
	for _, tt := range []struct {
		v    codec.View
		d    *codectest.Disk
		want error
	}{
		{Sparse, codectest.Full(2*tib, 1), codec.ErrTooLarge},
		{Format, codectest.Full(2*tib, 1), codec.ErrTooLarge},
		{Sparse, codectest.Full(2*tib-2*1024*mib, 1), nil},
		{Format, codectest.Full(2*tib-20*1024*mib, 1), nil},
		{Format, codectest.Empty(128*tib + 1), codec.ErrTooLarge},
		{Sparse, codectest.Empty(1 << 62), codec.ErrTooLarge},
	} {
		f, err := tt.v.Layout(ctx, tt.d, codectest.TestFacts())
		if !errors.Is(err, tt.want) {
			t.Errorf("%s of %s: %v, want %v", tt.v.Name(), tt.d.Name, err, tt.want)
		}
		if err == nil && f.Size() > 2*tib {
			t.Errorf("%s of %s: %d bytes", tt.v.Name(), tt.d.Name, f.Size())
		}
	}
}

// TestDescriptorText pins the text: readers are particular.
func TestDescriptorText(t *testing.T) {
	b, err := newDescriptor("vmdk", "streamOptimized", 262144, codectest.TestFacts())
	if err != nil {
		t.Fatal(err)
	}
	text := strings.TrimRight(string(b), "\x00")
	if len(b) != descriptorSectors*sector {
		t.Errorf("%d bytes", len(b))
	}
	u, c := codectest.TestFacts().UUID("vmdk", "image"), codectest.TestFacts().VersionUUID("vmdk", "content")
	for _, want := range []string{
		"# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\n",
		fmt.Sprintf("\nCID=%x\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n", c[12:]),
		"\nRW 262144 SPARSE \"disk1.vmdk\"\n",
		"\nddb.geometry.cylinders = \"16\"\n",
		fmt.Sprintf("\nddb.longContentID = \"%x\"\n", c),
		fmt.Sprintf("\nddb.uuid.image = \"%x-%x-%x-%x-%x\"\n", u[:4], u[4:6], u[6:8], u[8:10], u[10:]),
		"\nddb.uuid.parent = \"00000000-0000-0000-0000-000000000000\"\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the descriptor:\n%s", want, text)
		}
	}
	f := codectest.TestFacts()
	f.Name = "a\"\nb/c\\d"
	b, err = newDescriptor("vmdk", "streamOptimized", 1, f)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := parseDescriptor(b); err != nil || d.check() != nil || d.extents[0].name != "a__b_c_d.vmdk" {
		t.Errorf("a name of noise: %+v, %v", d, err)
	}
	f.Name = strings.Repeat("x", 10000)
	if _, err := newDescriptor("vmdk", "streamOptimized", 1, f); err == nil {
		t.Error("a name of 10,000 bytes fits")
	}
	other, _ := newDescriptor("sparse.vmdk", "streamOptimized", 262144, codectest.TestFacts())
	if strings.Contains(string(other), uuidText(u)) {
		t.Error("two flavours have one identity")
	}
}

// FuzzDescriptor: no text panics, and one that is accepted leads nowhere.
func FuzzDescriptor(f *testing.F) {
	b, err := newDescriptor("vmdk", "streamOptimized", 262144, codectest.TestFacts())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("# Disk DescriptorFile\nRW\t1 FLAT \"x\" 0\nRW"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDescriptor(b)
		if err == nil {
			err = d.check()
		}
		if err != nil && !codectest.Clean(err) {
			t.Errorf("no clean refusal: %v", err)
		}
		if err == nil && (len(d.extents) != 1 || strings.ContainsAny(d.extents[0].name, `/\`)) {
			t.Errorf("accepted: %+v", d)
		}
	})
}

// memory is a disk in memory, all data.
type memory struct{ *codectest.Disk }

var block = make([]byte, 8*mib)

func (m *memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		n += copy(p[n:], block[(off+int64(n))%int64(len(block)):])
	}
	return n, nil
}

// BenchmarkRead reads a view from end to end; its guest costs one copy.
func BenchmarkRead(b *testing.B) {
	rand.NewChaCha8([32]byte{1}).Read(block)
	d := &memory{codectest.Full(256*mib, 1)}
	for _, v := range []codec.View{Format, Sparse} {
		for _, n := range []int64{mib, 128 * kib, 4 * kib} {
			b.Run(fmt.Sprintf("%s/%dKiB", v.Name(), n/kib), func(b *testing.B) {
				f, err := v.Layout(context.Background(), d, codectest.TestFacts())
				if err != nil {
					b.Fatal(err)
				}
				p := make([]byte, n)
				off := int64(0)
				b.SetBytes(n)
				b.ReportAllocs()
				for b.Loop() {
					if m, err := f.ReadAt(context.Background(), p, off); m < len(p) && err != io.EOF {
						b.Fatal(err)
					}
					if off += n; off > f.Size()-n {
						off = 0
					}
				}
			})
		}
	}
}
