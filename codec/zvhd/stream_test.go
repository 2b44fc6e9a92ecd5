package zvhd

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// streamOf is the stream of an opened ZVHD.
func streamOf(d codec.Disk) *stream { return d.(*streamDisk).s }

// alone reports whether record k decodes without what is before it.
func alone(t *testing.T, s *stream, k int) bool {
	t.Helper()
	var w worker
	p, err := s.body(t.Context(), &w, k)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.inflate(w.block(), p, nil)
	return err == nil
}

// TestSequentialReadDecodesOnce: a reader from end to end reads the file once,
// though the blocks refer to those before them.
func TestSequentialReadDecodesOnce(t *testing.T) {
	want := seams(6*blockSize, 4)
	b := written(t, kindStream, want)
	src := codectest.Bounded(codectest.Bytes(b), 1<<40, 1<<40)
	d := codectest.Open(t, Format, src)
	for k := 1; k < 6; k++ {
		if alone(t, streamOf(d), k) {
			t.Fatalf("block %d does not refer to what is before it", k)
		}
	}
	_, before := src.Used()
	got, err := codectest.ReadAll(d)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("another disk, or %v", err)
	}
	// The first block stands alone, the second one asks for it again.
	if _, n := src.Used(); n-before > int64(len(b))+streamOf(d).recs[0].len() {
		t.Errorf("read %d bytes of a file of %d", n-before, len(b))
	}
}

// TestOwnBlocksStandAlone: a block of our own layout is one read, wherever it is.
func TestOwnBlocksStandAlone(t *testing.T) {
	src := codectest.Bounded(codectest.Layout(t, Format, codectest.Full(40<<20, 1)), 1<<40, 1<<40)
	d := codectest.Open(t, Format, src)
	_, before := src.Used()
	if n, err := d.ReadAt(t.Context(), make([]byte, 5000), 39<<20); n < 5000 {
		t.Fatal(err)
	}
	if _, n := src.Used(); n-before != recordLen {
		t.Errorf("read %d bytes, want those of a record, %d", n-before, recordLen)
	}
}

// TestNoiseStandsAlone: blocks that do not compress are a place to begin at.
func TestNoiseStandsAlone(t *testing.T) {
	want := seams(5*blockSize, 4)
	for i := range 3 {
		noise(want[(1+i)*blockSize : (2+i)*blockSize])
	}
	copy(want[4*blockSize:], want[4*blockSize-2000:4*blockSize]) // what it refers to
	b := written(t, kindStream, want)
	src := codectest.Bounded(codectest.Bytes(b), 1<<40, 1<<40)
	d := codectest.Open(t, Format, src)
	if alone(t, streamOf(d), 4) || !alone(t, streamOf(d), 3) {
		t.Fatal("block 3 has to stand alone and block 4 has not")
	}
	before, _ := src.Used()
	p := make([]byte, 5000)
	if n, err := d.ReadAt(t.Context(), p, 4*blockSize); n < len(p) || !bytes.Equal(p, want[4*blockSize:4*blockSize+5000]) {
		t.Fatalf("%v, or other bytes", err)
	}
	if reads, _ := src.Used(); reads-before != 2 {
		t.Errorf("block 4 took %d records, want 2", reads-before)
	}
}

// chain is a ZVHD of n blocks with a line of text each, which refers to the
// lines before it, and zeros.
func chain(t *testing.T, n int) (b []byte, lines [][]byte) {
	t.Helper()
	text := words(n*150, 5)
	w := &writer{kind: kindStream, size: n * blockSize}
	for i := range n {
		lines = append(lines, text[150*i:150*(i+1)])
		w.add(t, i, lines[i])
	}
	return w.image(), lines
}

// TestWindowsAreBounded: a file of many blocks is read in any order, and what is
// kept of it has a limit.
func TestWindowsAreBounded(t *testing.T) {
	const n = 3*keptWindows - 100
	b, lines := chain(t, n)
	src := codectest.Bounded(codectest.Bytes(b), 1<<40, 1<<40)
	d := codectest.Open(t, Format, src)
	r := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 1000)
	read := func(i int) {
		t.Helper()
		if n, err := d.ReadAt(t.Context(), p, int64(i)*blockSize); n < len(p) {
			t.Fatal(err)
		}
		if !bytes.Equal(p[:150], lines[i]) || !codec.Empty(p[150:]) {
			t.Fatalf("block %d: other bytes", i)
		}
	}
	read(n / 2) // nothing is known yet: all that is before is decoded
	read(n/2 + 1)
	read(n/2 - 1)
	read(n - 1)
	for range 100 {
		i := r.IntN(n)
		before, _ := src.Used()
		read(i)
		// Itself, the one before it by itself, and two on the way.
		if reads, _ := src.Used(); reads-before > 4 {
			t.Fatalf("block %d of a file that was read took %d records", i, reads-before)
		}
	}
	s := streamOf(d)
	if s.every != 3 || len(s.kept) > keptWindows+1 {
		t.Errorf("%d windows, one in %d records", len(s.kept), s.every)
	}
	for i, w := range s.kept {
		if len(w) > windowLen {
			t.Errorf("window %d has %d bytes", i, len(w))
		}
	}
}

// TestWaitingForTheStreamEnds: who waits for another's pass can be cancelled.
func TestWaitingForTheStreamEnds(t *testing.T) {
	b, _ := chain(t, 3)
	d := codectest.Open(t, Format, codectest.Bytes(b))
	s := streamOf(d)
	s.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := d.ReadAt(ctx, make([]byte, 100), 2*blockSize)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	<-s.turn
	if n, err := d.ReadAt(t.Context(), make([]byte, 100), 2*blockSize); n < 100 {
		t.Error(err)
	}
}

// TestStreamAfterAnError: what failed once is read once the store is back.
func TestStreamAfterAnError(t *testing.T) {
	b, lines := chain(t, 9)
	src := codectest.Faulty(codectest.Bytes(b), codectest.ErrBoom, 1<<40)
	d := codectest.Open(t, Format, src)
	p := make([]byte, 150)
	for n := range int64(9) {
		src.FailAfter(n)
		d := codectest.Open(t, Format, codectest.Bytes(b)).(*streamDisk)
		d.src = src
		if _, err := d.ReadAt(t.Context(), p, 8*blockSize); !errors.Is(err, codectest.ErrBoom) {
			t.Errorf("after %d reads: error %v, want the store's", n, err)
		}
		src.FailAfter(1 << 40)
		if m, err := d.ReadAt(t.Context(), p, 8*blockSize); m < len(p) || !bytes.Equal(p, lines[8]) {
			t.Errorf("after %d reads and an error: %v, or other bytes", n, err)
		}
	}
	if m, err := d.ReadAt(t.Context(), p, 0); m < len(p) {
		t.Error(err)
	}
}
