package zvhd

import (
	"context"
	"errors"
	"sync"

	"github.com/klauspost/compress/flate"

	"imagefs/codec"
)

// restartRecords are the records between two restart points: with one that is
// tried without a window, a read decodes 16 MiB at most.
const restartRecords = 7

var (
	_ codec.Windowed = (*streamDisk)(nil)
	_ codec.Streamed = (*frameDisk)(nil)
)

// streamDisk is a ZVHD.
type streamDisk struct {
	*disk
	s *stream
}

// Stored implements [codec.Windowed].
func (d *streamDisk) Stored() codec.Source { return d.src }

// Restarts implements [codec.Windowed]: there is one before every seventh
// record, but for the first of all.
func (d *streamDisk) Restarts() (n, every int64) {
	return int64(max(len(d.recs)-1, 0) / restartRecords), restartRecords * blockSize
}

// SetWindows implements [codec.Windowed].
func (d *streamDisk) SetWindows(window func(ctx context.Context, k int64) ([]byte, error)) {
	d.s.indexed = window
}

// job is a record on the way through a walk. It belongs to the feeder, a worker
// and the one who walks in turn.
type job struct {
	k     int
	w     worker
	p     []byte // its deflate data, in w
	n     int    // bytes they decode to, if alone
	alone bool   // it needs no window
	err   error
	done  chan struct{} // a worker is through with it
}

// Walk implements [codec.Windowed]. Workers decode what needs no window, and the
// caller the rest, in order.
func (d *streamDisk) Walk(ctx context.Context, workers int, each func(off int64, block []byte) error, keep func(window []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	// All jobs fit into each channel: only taking a free one can wait.
	n := 2 * max(workers, 1)
	free, todo, order := make(chan *job, n), make(chan *job, n), make(chan *job, n)
	for range n {
		free <- &job{done: make(chan struct{}, 1)}
	}
	for range max(workers, 1) {
		wg.Go(func() {
			for j := range todo {
				j.err = d.attempt(ctx, j, each)
				j.done <- struct{}{}
			}
		})
	}
	wg.Go(func() {
		defer close(order)
		defer close(todo)
		for k := range d.recs {
			select {
			case j := <-free:
				j.k = k
				todo <- j
				order <- j
			case <-ctx.Done():
				return
			}
		}
	})

	var window []byte // before the next record
	for j := range order {
		<-j.done
		if j.err != nil {
			return j.err
		}
		if j.k > 0 && j.k%restartRecords == 0 {
			need := window
			if j.alone {
				need = nil
			}
			if err := keep(need); err != nil {
				return err
			}
		}
		if !j.alone {
			if err := d.depends(j, window, each); err != nil {
				return err
			}
		}
		window = slide(window, j.w.out[:j.n])
		free <- j
	}
	return ctx.Err()
}

// attempt decodes the record of j without a window, if that can be.
func (d *streamDisk) attempt(ctx context.Context, j *job, each func(int64, []byte) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	if j.p, err = d.s.body(ctx, &j.w, j.k); err != nil {
		return err
	}
	j.n, err = j.w.inflate(j.w.block(), j.p, nil)
	var corrupt flate.CorruptInputError
	if j.alone = err == nil; j.k > 0 && errors.As(err, &corrupt) {
		return nil // damaged, or it refers to what is before it
	}
	if err != nil {
		return d.damaged(j.k, err)
	}
	return d.tell(j, each)
}

// depends decodes the record of j with the window before it.
func (d *streamDisk) depends(j *job, window []byte, each func(int64, []byte) error) (err error) {
	if j.n, err = j.w.inflate(j.w.block(), j.p, window); err != nil {
		return d.damaged(j.k, err)
	}
	return d.tell(j, each)
}

// tell hands the block of j out.
func (d *streamDisk) tell(j *job, each func(int64, []byte) error) error {
	off := int64(d.recs[j.k].block) * blockSize
	return each(off, j.w.out[:min(blockSize, d.size-off)])
}

// frameDisk is a ZVHD2 of zstd frames, which can be handed on.
type frameDisk struct {
	*disk
	s *single
}

// Encoding implements [codec.Streamed].
func (d *frameDisk) Encoding() string { return codec.Zstd }

// Stored implements [codec.Streamed].
func (d *frameDisk) Stored() codec.Source { return d.src }

// StreamAt implements [codec.Streamed].
func (d *frameDisk) StreamAt(i int64) (off int64, ok bool) {
	k := d.after(i)
	if k == len(d.recs) || int64(d.recs[k].block) != i {
		return 0, false
	}
	return d.recs[k].off + recordHead, true
}

// Measure implements [codec.Streamed]. A payload that decodes to less than a
// block is none that others would take for one.
func (d *frameDisk) Measure(ctx context.Context, i int64, dst []byte) (int64, error) {
	k := d.after(i)
	if k == len(d.recs) || int64(d.recs[k].block) != i {
		return 0, nil
	}
	w := workers.Get().(*worker)
	defer workers.Put(w)
	p, err := d.s.payload(ctx, w, k)
	if err != nil {
		return 0, err
	}
	n, err := unzstd(dst[:blockSize:blockSize], p)
	if err != nil || n < blockSize {
		return 0, d.damaged(k, err)
	}
	return int64(len(p)), nil
}
