package fs

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
)

// writers are the processes that wrote through one handle. The zero value has
// none; it is safe for concurrent use.
//
// Every close(2) of the handle in any process is a flush, and a program that
// starts another while it copies has the file open there too until the other
// program runs. Such a close says nothing of the file: it is not complete.
type writers struct {
	mu      sync.Mutex
	threads map[uint32]int // guarded by mu; those that wrote, and their processes, 0 if not known
}

// add notes the thread of a request that writes.
func (w *writers) add(ctx context.Context) {
	tid := pid(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, known := w.threads[tid]; known {
		return
	}
	if w.threads == nil {
		w.threads = make(map[uint32]int)
	}
	w.threads[tid] = process(tid)
}

// others reports whether all that was written is by processes other than that
// of the request. Unless that is sure, it is not so.
func (w *writers) others(ctx context.Context) bool {
	p := process(pid(ctx))
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, writer := range w.threads {
		if writer == 0 || writer == p {
			return false
		}
	}
	return p != 0 && len(w.threads) > 0
}

// process returns the process of a thread, 0 if it cannot be known.
func process(tid uint32) int {
	if tid == 0 {
		return 0 // of a process that this one cannot see
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "\nTgid:")
	line, _, _ := strings.Cut(rest, "\n")
	p, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return 0
	}
	return p
}
