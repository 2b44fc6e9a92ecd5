package qcow2

import (
	"context"
	"fmt"
	"io"
	"math"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"imagefs/codec"
)

const (
	// batchLen is how many bytes of the disk a worker takes at a time.
	batchLen = 1 << 20
	// batchesPerWorker lets a worker go on while its last batch waits for
	// its turn to be written.
	batchesPerWorker = 2
	// worthLen is the longest payload that is kept. Less than a sector saved
	// is not worth decoding the cluster at every read.
	worthLen = layCluster - 512
	// payloadCap has room for a batch of which nothing shrinks: a frame of
	// stored blocks is a few bytes longer than its cluster.
	payloadCap = batchLen + 1024
)

// Compress writes d to w as an image of zstd clusters, 64 KiB each, and returns
// its length in bytes. Holes of d's map and clusters of zeros take no space in
// it; a cluster that does not shrink is stored as it is. Its disk is d followed
// by zeros up to a multiple of 512 bytes.
//
// The bytes written depend on d's size and bytes alone, neither on its map nor
// on the number of workers. Every byte of the file is written once, in order
// but for two: a write may fall back by up to [CompressBehind], and the first
// cluster comes last, so that a file cut short is none.
//
// workers is how many goroutines read d and compress; below 1 it is the number
// of processors. Each costs about 6 MiB, and every 64 KiB that are stored cost
// 4 bytes. w is written to by one goroutine at a time.
//
// [codec.ErrTooLarge] when d does not fit. Other errors are those of d, of w
// and of ctx, wrapped. Nothing runs any more after Compress has returned.
func Compress(ctx context.Context, w io.WriterAt, d codec.Disk, workers int) (size int64, err error) {
	if d.Size() > layMax {
		return 0, tooLarge(d.Size())
	}
	if workers < 1 {
		workers = runtime.GOMAXPROCS(0)
	}
	im := newWriter(w, d.Size())
	if err := im.data(ctx, d, workers); err != nil {
		return 0, err
	}
	return im.finish()
}

// batch is up to 1 MiB of neighbouring guest clusters on their way to a file.
// It belongs to the feeder, a worker and the writer in turn.
type batch struct {
	first int64    // guest cluster
	in    []byte   // whole clusters, zeros behind the disk's end
	out   []byte   // the payloads, back to back
	lens  []uint16 // of each cluster: see [storedPlain]
	err   error
	done  chan struct{} // a worker is through with it
}

// What a cluster is stored as, when it is no payload of that many bytes.
const (
	notStored   = 0 // reads as zeros
	storedPlain = math.MaxUint16
)

// data compresses the whole disk with so many workers and writes it.
func (im *writer) data(ctx context.Context, d codec.Disk, workers int) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	// All batches fit into each channel: only taking a free one can wait.
	n := batchesPerWorker * workers
	f := feeder{
		free: make(chan *batch, n), todo: make(chan *batch, n), order: make(chan *batch, n),
	}
	for range n {
		f.free <- &batch{done: make(chan struct{}, 1)}
	}
	for range workers {
		enc, err := newEncoder()
		if err != nil {
			close(f.todo)
			return err
		}
		wg.Go(func() {
			for b := range f.todo {
				b.err = b.compress(ctx, d, im.size, enc)
				b.done <- struct{}{}
			}
		})
	}
	wg.Go(func() { f.run(ctx, d, im.size) })

	for b := range f.order {
		<-b.done
		if b.err != nil {
			return b.err
		}
		if err := im.add(b); err != nil {
			return err
		}
		f.free <- b
	}
	return f.err
}

// newEncoder returns an encoder of clusters, for one goroutine. On system files
// the next level takes nearly twice as long for 5 percent less. That literals
// are coded even where nothing repeats brings 2 percent there for no time, and
// half of what is random text. Checksums cost 2 percent of the time.
func newEncoder() (*zstd.Encoder, error) {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithAllLitEntropyCompression(true),
		zstd.WithWindowSize(layCluster))
	if err != nil {
		return nil, fmt.Errorf("zstd encoder: %w", err)
	}
	return enc, nil
}

// compress reads the batch and makes its payloads.
func (b *batch) compress(ctx context.Context, d codec.Disk, size int64, enc *zstd.Encoder) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	off := b.first * layCluster
	n := min(int64(len(b.in)), size-off)
	if err := codec.ReadFull(ctx, d, b.in[:n], off, "disk"); err != nil {
		return err
	}
	clear(b.in[n:])
	if b.out == nil {
		b.out = make([]byte, 0, payloadCap)
	}
	b.out, b.lens = b.out[:0], b.lens[:0]
	for in := b.in; len(in) > 0; in = in[layCluster:] {
		cluster, stored := in[:layCluster], notStored
		if !codec.Empty(cluster) {
			was := len(b.out)
			b.out = enc.EncodeAll(cluster, b.out)
			if stored = len(b.out) - was; stored > worthLen {
				b.out, stored = b.out[:was], storedPlain
			}
		}
		b.lens = append(b.lens, uint16(stored))
	}
	return nil
}

// feeder cuts what a disk's map calls data into batches.
type feeder struct {
	free  chan *batch // that may be filled
	todo  chan *batch // to be compressed
	order chan *batch // the same, to be written in this order
	err   error       // why it ended; read it once order is closed
}

// run feeds the whole disk.
func (f *feeder) run(ctx context.Context, d codec.Disk, size int64) {
	defer close(f.order)
	defer close(f.todo)
	// The clusters lo to hi-1 are data and not fed yet. Extents begin and
	// end anywhere: two may touch one cluster.
	var lo, hi int64
	for e, err := range d.Extents(ctx, 0, size) {
		if err != nil {
			f.err = fmt.Errorf("extents of the disk: %w", err)
			return
		}
		if e.Zero || e.Len <= 0 {
			continue
		}
		first, end := e.Off/layCluster, codec.Ceil(e.Off+e.Len, layCluster)
		if first > hi {
			if f.err = f.feed(ctx, lo, hi); f.err != nil {
				return
			}
			lo = first
		}
		hi = max(hi, end)
		// Whole batches can go: what follows does not change them.
		whole := (hi - lo) / (batchLen / layCluster) * (batchLen / layCluster)
		if f.err = f.feed(ctx, lo, lo+whole); f.err != nil {
			return
		}
		lo += whole
	}
	f.err = f.feed(ctx, lo, hi)
}

// feed feeds the clusters lo to hi-1.
func (f *feeder) feed(ctx context.Context, lo, hi int64) error {
	for lo < hi {
		var b *batch
		select {
		case b = <-f.free:
		case <-ctx.Done():
			return ctx.Err()
		}
		n := min(hi-lo, batchLen/layCluster)
		if b.in == nil {
			b.in = make([]byte, batchLen)
		}
		b.first, b.in = lo, b.in[:n*layCluster]
		f.todo <- b
		f.order <- b
		lo += n
	}
	return nil
}
