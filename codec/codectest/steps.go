package codectest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"imagefs/codec"
)

// Layout lays d out with [TestFacts], which must work.
func Layout(t testing.TB, v codec.View, d codec.Disk) *codec.File {
	t.Helper()
	f, err := v.Layout(context.Background(), d, TestFacts())
	if err != nil {
		t.Fatalf("lay out: %v", err)
	}
	return f
}

// Open opens src, which must work.
func Open(t testing.TB, f codec.Format, src codec.Source) codec.Disk {
	t.Helper()
	d, err := f.Open(context.Background(), src)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return d
}

// Refused wants the image b refused, with an error of the kind want whose text
// holds words.
func Refused(t testing.TB, f codec.Format, b []byte, want error, words string) {
	t.Helper()
	_, err := f.Open(context.Background(), Bytes(b))
	if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), words) {
		t.Errorf("open: error %q, want %q with %q", fmt.Sprint(err), want, words)
	}
}

// SameAs compares d with a naive reader of the same image, which gives the byte
// at an offset: at the ends and the middle of the first 50 extents. The extents
// must cover the disk.
func SameAs(t testing.TB, d codec.Disk, naive func(off int64) byte) {
	t.Helper()
	ctx := context.Background()
	var end int64
	n := 0
	p := make([]byte, 5000)
	for e, err := range d.Extents(ctx, 0, d.Size()) {
		if err != nil || e.Off != end || e.Len <= 0 {
			t.Fatalf("extent %+v behind %d: %v", e, end, err)
		}
		end += e.Len
		if n++; n > 50 {
			continue
		}
		for _, at := range []int64{e.Off, e.Off + e.Len/2, max(e.Off, e.Off+e.Len-100)} {
			m, err := d.ReadAt(ctx, p, at)
			if want := min(int64(len(p)), d.Size()-at); int64(m) != want {
				t.Fatalf("read at %d: %d of %d: %v", at, m, want, err)
			}
			for i := range m {
				if want := naive(at + int64(i)); p[i] != want {
					t.Fatalf("byte at %d is %#x, want %#x", at+int64(i), p[i], want)
				}
			}
		}
	}
	if end != d.Size() {
		t.Fatalf("extents end at %d of %d", end, d.Size())
	}
}
