package codectest

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"testing"

	"imagefs/codec"
)

// Offered is a disk that offers its streams to layouts, as the daemon has it:
// of an index that was written and read again.
type Offered struct {
	codec.Disk
	Index []byte // as it is stored
	Fault *Fault // all reads of the source
	s     *codec.Streams
}

// Streams implements [codec.Streamer].
func (o *Offered) Streams(context.Context) (*codec.Streams, error) { return o.s, nil }

// Offer opens src, which holds streams, and makes its index.
func Offer(t testing.TB, f codec.Format, src codec.Source) *Offered {
	t.Helper()
	o := &Offered{Fault: Faulty(src, ErrBoom, 1<<62)}
	o.Disk = Open(t, f, o.Fault)
	x, err := codec.BuildIndex(t.Context(), o.Disk, 2, nil)
	if err != nil || x == nil {
		t.Fatalf("build an index: %v, %v", x, err)
	}
	defer x.Close()
	var b bytes.Buffer
	if _, err := x.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	o.Index = b.Bytes()
	if x, err = codec.OpenIndex(t.Context(), Bytes(o.Index), o.Disk); err != nil {
		t.Fatal(err)
	}
	if o.s, err = codec.NewStreams(t.Context(), o.Disk, x); err != nil {
		t.Fatal(err)
	}
	return o
}

// Reframe lays o out in a view that hands streams on and holds what every layout
// owes: nothing is read meanwhile, the same bytes come each time and at any
// offset, open reads the disk back, and errors of the store are passed on.
func Reframe(t *testing.T, v codec.View, open codec.Format, o *Offered) *codec.File {
	t.Helper()
	o.Fault.FailAfter(0)
	f, again := Layout(t, v, o), Layout(t, v, o)
	if n, err := f.ReadAt(t.Context(), make([]byte, f.Size()), 0); err == nil && o.s.Coded.Count()+o.s.Plain.Count() > 0 {
		t.Errorf("%d bytes read of a store that fails", n)
	}
	o.Fault.FailAfter(1 << 62)
	if err := extentsErr(f); err != nil {
		t.Errorf("extents: %v", err)
	}
	a, err1 := Sum(f)
	b, err2 := Sum(again)
	if a != b || err1 != nil || err2 != nil {
		t.Errorf("sum %s, %v, and of a second layout %s, %v", a, err1, b, err2)
	}
	got := Open(t, open, f)
	if want := codec.Up(o.Size(), 512); got.Size() != want {
		t.Errorf("opened disk has %d bytes, want %d", got.Size(), want)
	}
	sameDisk(t, got, o.Disk)
	CheckRandom(t, f)
	return f
}

// Unpacked is the content of a file that is kept gzipped.
func Unpacked(t testing.TB, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
