package zvhd

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// formatOf opens images of a kind.
func formatOf(kind int) codec.Format {
	if kind == kindStream {
		return Format
	}
	return Format2
}

func TestOpenOfWrittenImages(t *testing.T) {
	want := sample
	for kind, name := range kindNames {
		t.Run(name, func(t *testing.T) {
			b := samples[kind](t)
			if naive, err := naiveDisk(b); err != nil || !bytes.Equal(naive, want) {
				t.Fatalf("the second reader reads another disk, or %v", err)
			}
			d := codectest.Open(t, formatOf(kind), codectest.Bytes(b))
			got, err := codectest.ReadAll(d)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("another disk, or %v", err)
			}
			if n := d.(codec.Coded).Unit(); n != blockSize {
				t.Errorf("unit %d, want %d", n, blockSize)
			}
			es, err := codectest.Extents(d)
			if err != nil || !slices.Equal(es, []codec.Extent{
				{Off: 0, Len: 2 * blockSize},
				{Off: 2 * blockSize, Len: blockSize, Zero: true},
				{Off: 3 * blockSize, Len: 2*blockSize + 1024},
			}) {
				t.Errorf("extents %v, %v", es, err)
			}
			// A fresh disk each time: nothing is known of the stream yet.
			r := rand.New(rand.NewPCG(1, 2))
			for range 12 / codectest.Thin(2) {
				d := codectest.Open(t, formatOf(kind), codectest.Bytes(b))
				off := r.IntN(len(want))
				p := make([]byte, r.IntN(3<<20))
				n, err := d.ReadAt(t.Context(), p, int64(off))
				if err != nil && err != io.EOF || !bytes.Equal(p[:n], want[off:off+n]) || n < len(p) && off+n < len(want) {
					t.Fatalf("read of %d bytes at %#x: %d, %v, or other bytes", len(p), off, n, err)
				}
			}
		})
	}
}

func TestConcurrentReads(t *testing.T) {
	want := sample
	for kind, name := range kindNames {
		t.Run(name, func(t *testing.T) {
			d := codectest.Open(t, formatOf(kind), codectest.Bytes(samples[kind](t)))
			var wg sync.WaitGroup
			for i := range 6 {
				wg.Go(func() {
					p := make([]byte, min(blockSize, len(want)-i*blockSize))
					n, err := d.ReadAt(t.Context(), p, int64(i)*blockSize)
					if n < len(p) || !bytes.Equal(p, want[i*blockSize:i*blockSize+n]) {
						t.Errorf("block %d: %d bytes, %v, or other bytes", i, n, err)
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestLayoutsReadByTheSecondReader(t *testing.T) {
	for _, v := range []codec.View{Format, Format2, Zlib2} {
		disks := []*codectest.Disk{
			codectest.Empty(3 << 20),
			codectest.Full(512, 1),
			codectest.Full(2<<20+513, 1),
			codectest.LastSector(8<<20 + 512),
			codectest.Alternating(6<<20, 2<<20),
			codectest.Scattered(5<<20, 6, 6),
		}
		if codectest.Thin(2) == 1 { // its 128 MiB take the race detector too long
			disks = append(disks, codectest.Example())
		} else {
			t.Log("the example of 128 MiB is left to the run without the race detector")
		}
		for _, d := range disks {
			t.Run(v.Name()+"/"+d.Name, func(t *testing.T) {
				b, err := codectest.ReadAll(codectest.Layout(t, v, d))
				if err != nil {
					t.Fatal(err)
				}
				checkHeaders(t, b, int(d.Size()))
				got, err := naiveDisk(b)
				if err != nil {
					t.Fatal(err)
				}
				want, err := codectest.ReadAll(d)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got[:len(want)], want) || !codec.Empty(got[len(want):]) || len(got) != int(codec.Up(d.Size(), 512)) {
					t.Error("another disk")
				}
			})
		}
	}
}

func TestZstdLayoutIsRawBlocks(t *testing.T) {
	d := codectest.Full(blockSize, 3)
	b, err := codectest.ReadAll(codectest.Layout(t, Format2, d))
	if err != nil {
		t.Fatal(err)
	}
	p, _, n, err := naiveRecord(b, 4096)
	if err != nil || n != 513*4096 {
		t.Fatalf("a record of %d bytes, %v", n, err)
	}
	got, err := rawFrame(p)
	want, _ := codectest.ReadAll(d)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("other bytes, or %v", err)
	}
}

func TestLayoutTooLarge(t *testing.T) {
	const most = int64(maxUsed) * blockSize
	codectest.Layout(t, Format2, codectest.Full(most, 1))
	codectest.Layout(t, Format2, codectest.Empty(most+1))
	for _, d := range []*codectest.Disk{codectest.Full(most+1, 1), codectest.Empty(codec.MaxBlocks*blockSize + 1)} {
		if _, err := Format2.Layout(t.Context(), d, codectest.TestFacts()); !errors.Is(err, codec.ErrTooLarge) {
			t.Errorf("%s: error %v, want %v", d.Name, err, codec.ErrTooLarge)
		}
	}
}

func TestGeometry(t *testing.T) {
	for _, c := range []struct{ size, c, h, s int64 }{
		{0, 0, 4, 17},
		{128 << 20, 963, 16, 17},
		{20959232, 602, 4, 17}, // this and the next two as qemu-img has them in a VHD
		{142974976, 563, 16, 31},
		{508354560, 985, 16, 63},
		{1 << 30, 2080, 16, 63},
		{127 << 30, 65278, 16, 255},
		{2040 << 30, 65535, 16, 255},
	} {
		if got, want := geometry(c.size), uint32(c.c<<16|c.h<<8|c.s); got != want {
			t.Errorf("%d bytes: %#x, want %#x", c.size, got, want)
		}
	}
}

func TestStoredRecordsHaveOneLength(t *testing.T) {
	for _, s := range []shape{stored, framed} {
		for _, lead := range []string{"", s.lead} {
			if n := recordPages(int64(len(lead) + s.body())); n*page != recordLen {
				t.Errorf("a payload of %q and %d bytes takes %d pages, want %d", lead, s.body(), n, recordLen/page)
			}
		}
	}
}
