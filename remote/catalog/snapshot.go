package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"imagefs/remote"
)

// document is an entry, live or deleted, as it lies in the store.
type document struct {
	object remote.Object
	entry  *Entry // nil for a mark
}

// time is since when an image is deleted.
func (d document) time() time.Time {
	if d.entry.Deleted.IsZero() {
		return d.object.ModTime
	}
	return d.entry.Deleted
}

// takeSnapshot reads all entries as they were at one time: an entry moves
// between folders and names while they are listed, so it lists until two
// listings agree.
func takeSnapshot(ctx context.Context, store remote.Store) (map[string]document, error) {
	known := make(map[string]document)
	for range tries {
		listed, err := listEntries(ctx, store)
		if err != nil {
			return nil, err
		}
		var fresh []remote.Object
		for key, o := range listed {
			if d, ok := known[key]; !ok || d.object.ETag != o.ETag || !d.object.ModTime.Equal(o.ModTime) {
				fresh = append(fresh, o)
			}
		}
		if len(fresh) == 0 && len(listed) == len(known) {
			return known, nil
		}
		for key := range known {
			if _, ok := listed[key]; !ok {
				delete(known, key)
			}
		}
		read, err := readAll(ctx, store, fresh)
		if err != nil {
			return nil, err
		}
		for _, d := range read {
			known[d.object.Key] = d
		}
	}
	return nil, fmt.Errorf("read the entries: %w again and again", ErrConflict)
}

func listEntries(ctx context.Context, store remote.Store) (map[string]remote.Object, error) {
	listed := make(map[string]remote.Object)
	for _, folder := range []string{Folder, deletedFolder} {
		for o, err := range store.List(ctx, folder) {
			if err != nil {
				return nil, fmt.Errorf("list the entries: %w", err)
			}
			if strings.HasSuffix(o.Key, suffix) {
				listed[o.Key] = o
			}
		}
	}
	return listed, nil
}

// readAll reads some entries, several at a time. Those that changed since they
// were listed are left out.
func readAll(ctx context.Context, store remote.Store, objects []remote.Object) ([]document, error) {
	const atOnce = 16
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	docs := make([]document, len(objects))
	slots := make(chan struct{}, atOnce)
	for i, o := range objects {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			if isMark(o) {
				docs[i].object = o
				return
			}
			e, _, err := readEntry(ctx, store, o)
			switch {
			case err == nil:
				docs[i] = document{o, e}
			case !errors.Is(err, remote.ErrChanged) && !errors.Is(err, fs.ErrNotExist):
				cancel(fmt.Errorf("read the entry %q: %w", o.Key, err))
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var read []document
	for _, d := range docs {
		if d.object.Key != "" {
			read = append(read, d)
		}
	}
	return read, nil
}
