package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// event is something that happens to a source, as --json prints it.
type event struct {
	Event  string `json:"event"`          // fetching, checking, note, encoding, storing, progress, done, warmed or error
	Step   string `json:"step,omitempty"` // that a progress is of
	Source string `json:"source,omitempty"`
	Image  string `json:"image,omitempty"`
	Disk   *int   `json:"disk,omitempty"`
	Format string `json:"format,omitempty"` // of the source
	Bytes  int64  `json:"bytes,omitempty"`  // of the source; of a progress those that are done
	Total  int64  `json:"total,omitempty"`  // of a progress, when it is known
	SHA256 string `json:"sha256,omitempty"` // of the source; none of a raw disk that is nearly all holes
	Note   string `json:"note,omitempty"`
	Got    int64  `json:"fetched,omitempty"` // of what is warmed, the bytes that were not there
	Error  string `json:"error,omitempty"`
}

// reporter tells how an import or a warming gets on: a line that moves on a terminal, else
// lines at the start and the end of what takes long, or JSON. It may be used
// by several goroutines.
type reporter struct {
	lines io.Writer     // for people, or nil
	json  *json.Encoder // for programs, or nil
	width int           // of the terminal that lines is, else 0
	every time.Duration // between two events of progress
	now   func() time.Time

	mu    sync.Mutex
	last  time.Time // guarded by mu; of an event of progress
	over  bool      // guarded by mu; an error was told
	moves bool      // guarded by mu; the terminal's line is one that moves
}

func newReporter(quiet, asJSON bool) *reporter {
	r := &reporter{every: 100 * time.Millisecond, now: time.Now}
	if asJSON {
		r.json, r.every = json.NewEncoder(os.Stdout), 500*time.Millisecond
		r.json.SetEscapeHTML(false)
	} else if !quiet {
		r.lines = os.Stderr
		if ws, err := unix.IoctlGetWinsize(int(os.Stderr.Fd()), unix.TIOCGWINSZ); err == nil {
			r.width = max(int(ws.Col), 40)
		}
	}
	return r
}

// event tells that a step begins, or that a source is done.
func (r *reporter) event(name string, e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Event = name
	if r.json != nil {
		r.json.Encode(e)
	}
	if r.lines == nil {
		return
	}
	if name == "note" {
		r.clear()
		fmt.Fprintf(r.lines, "note on %q: %s\n", e.Source, e.Note)
		return
	}
	if name == "done" {
		r.clear()
		what := fmt.Sprintf("image %q", e.Image) // a package, whole
		if e.Disk != nil {
			what = fmt.Sprintf("disk %d of image %q", *e.Disk, e.Image)
		}
		line := fmt.Sprintf("imported %q: %s, %s, %s", e.Source, what, e.Format, iec(e.Bytes))
		if e.SHA256 != "" {
			line += ", SHA-256 " + e.SHA256
		}
		fmt.Fprintln(r.lines, line)
		return
	}
	if name == "warmed" {
		r.clear()
		fmt.Fprintf(r.lines, "warmed %q: disk %d of image %q, %s, of which %s were fetched now\n",
			e.Source, *e.Disk, e.Image, iec(e.Bytes), iec(e.Got))
		return
	}
	line := name + " " + strconv.Quote(e.Source)
	if e.Bytes > 0 {
		line += ", " + iec(e.Bytes)
	}
	if r.width == 0 {
		fmt.Fprintln(r.lines, line)
		return
	}
	r.clear()
	fmt.Fprint(r.lines, cutRunes(line, r.width-1))
	r.moves = true
}

// failed tells of the error that ends the import, once. People get it from main.
func (r *reporter) failed(e event, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.json != nil && err != nil && !r.over {
		r.over = true
		e.Event, e.Error = "error", err.Error()
		r.json.Encode(e)
	}
}

// step begins a step and returns what is to be called with its progress in
// bytes. total is below 0 when it is not known.
func (r *reporter) step(name string, e event) func(done, total int64) {
	start := r.now()
	var most int64 // guarded by mu
	return func(done, total int64) {
		r.mu.Lock()
		defer r.mu.Unlock()
		now := r.now()
		if done <= most || now.Sub(r.last) < r.every {
			return
		}
		most, r.last = done, now
		if r.json != nil {
			e.Event, e.Step, e.Bytes, e.Total = "progress", name, done, max(total, 0)
			r.json.Encode(e)
		}
		if r.lines != nil && r.width > 0 {
			r.clear()
			fmt.Fprint(r.lines, bar(name+" "+strconv.Quote(e.Source), done, total, now.Sub(start), r.width-1))
			r.moves = true
		}
	}
}

// clear empties the terminal's line. mu is held.
func (r *reporter) clear() {
	if r.moves {
		fmt.Fprint(r.lines, "\r\x1b[K")
		r.moves = false
	}
}

// close leaves the terminal's line.
func (r *reporter) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lines != nil {
		r.clear()
	}
}

// barCells is the length of a bar.
const barCells = 20

// bar is a line of width cells that shows how far something has got.
func bar(label string, done, total int64, took time.Duration, width int) string {
	rate := float64(done) / max(took.Seconds(), 1e-3)
	right := fmt.Sprintf("%s  %.1f MB/s", iec(done), rate/1e6)
	if total > 0 {
		done = min(done, total)
		part := float64(done) / float64(total)
		n := int(part * barCells)
		eta := "-:--"
		if done > 0 {
			eta = clock(float64(total-done) / rate)
		}
		right = fmt.Sprintf("[%s%s] %3d%%  %.1f MB/s  ETA %s", strings.Repeat("#", n), strings.Repeat(".", barCells-n),
			int(part*100), rate/1e6, eta)
	}
	return cutRunes(cutRunes(label, max(width-len(right)-2, 10))+"  "+right, width)
}

// clock writes seconds as people read them, hours and minutes first.
func clock(seconds float64) string {
	s := int64(min(seconds+0.5, 359999))
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// cutRunes cuts a text to n runes and says where it did.
func cutRunes(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:max(n-1, 0)]) + "…"
	}
	return s
}
