package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

const (
	objectPiece    = 16 << 20 // bytes of one read of an object that is fetched
	objectParallel = 4        // such reads under way
)

// object fetches one version of an object.
func (d *download) object(ctx context.Context, f *storeFlags, folder, key string) error {
	st, err := f.open(ctx, folder)
	if err != nil {
		return fmt.Errorf("open %q: %w", folder, err)
	}
	defer st.close()
	o, err := st.Stat(ctx, key)
	if err != nil {
		return err
	}
	d.size, d.modified = o.Size, o.ModTime
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next, done atomic.Int64
	var wg sync.WaitGroup
	for range min(objectParallel, o.Size/objectPiece+1) {
		wg.Go(func() {
			buf := make([]byte, min(objectPiece, o.Size))
			for ctx.Err() == nil {
				off := next.Add(objectPiece) - objectPiece
				if off >= o.Size {
					return
				}
				p := buf[:min(objectPiece, o.Size-off)]
				err := st.ReadRange(ctx, o, p, off)
				if err == nil {
					_, err = writeSparse(d.file, p, off)
				}
				if err != nil {
					cancel(err)
					return
				}
				d.progress(done.Add(int64(len(p))), o.Size)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
