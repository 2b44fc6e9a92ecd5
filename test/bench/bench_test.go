package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) {
	// This program does some work in a process of its own.
	if len(os.Args) > 1 && os.Args[1] == "burn" {
		burn()
		return
	}
	os.Exit(m.Run())
}

// burn uses some processor time, and memory that can be told from nothing.
func burn() {
	var n byte
	held := make([]byte, 64<<20)
	for i := range 200_000_000 {
		n += byte(i)
	}
	for i := range held {
		held[i] = n
	}
}

func testBench(t *testing.T) *bench {
	return &bench{ctx: t.Context(), dir: t.TempDir(), rounds: 3, out: new(bytes.Buffer), settings: map[string][]string{}}
}

func TestSpread(t *testing.T) {
	for _, k := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{2}, spread{2, 2, 2}},
		{[]float64{3, 1, 2}, spread{2, 1, 3}},
		{[]float64{4, 1, 3, 2}, spread{3, 1, 4}}, // the upper one of two
	} {
		if got := spreadOf(k.values); got != k.want {
			t.Errorf("%v: got %v, want %v", k.values, got, k.want)
		}
	}
}

// TestRatios: a rival is compared with imagefs within a round, not by medians.
func TestRatios(t *testing.T) {
	ours := []lap{{seconds: 1}, {seconds: 10}, {seconds: 2}}
	theirs := []lap{
		{seconds: 2, cpu: 1, rss: 5, fetched: 100},
		{seconds: 30, cpu: 3, rss: 7, fetched: 300, needed: 100},
		{seconds: 2, cpu: 2, rss: 6, fetched: 200},
	}
	got := resultOf(result{Rival: "b"}, theirs, ours, 8, 50)
	if *got.Ratio != (spread{2, 1, 3}) || *got.Seconds != (spread{2, 2, 30}) {
		t.Errorf("ratio %v of seconds %v", got.Ratio, got.Seconds)
	}
	if got.CPU != 2 || got.RSS != 7 || got.Fetched != 200 || got.Overhead != 3 || got.PerSecond != 4 {
		t.Errorf("got %+v", got)
	}
	if own := resultOf(result{}, ours, nil, 0, 0); own.Ratio != nil || own.PerSecond != 0 || own.Overhead != 0 {
		t.Errorf("imagefs itself: %+v", own)
	}
}

// TestLapsAndBlanks: rivals alternate, one round is not counted, every lap of
// imagefs is a case, and who cannot run is left blank with its reason.
func TestLapsAndBlanks(t *testing.T) {
	b := testBench(t)
	var order []string
	goes := func(name string, laps ...string) func(*turn) error {
		return func(tn *turn) error {
			order = append(order, name)
			tn.laps = map[string]lap{}
			for i, l := range laps {
				tn.laps[l] = lap{seconds: float64(i + 1)}
			}
			return nil
		}
	}
	broken := 0
	err := b.hold(contest{
		part: "p", name: "c", laps: twoLaps, ours: goes("a", "first", "warm"),
		entrants: []entrant{
			{rival: loopback, run: goes("b", ""), goal: 2, lap: "warm"},
			{rival: plainCopy, run: func(*turn) error { broken++; return errors.New("is\n broken") }},
			{rival: "nobody", run: goes("n", "")},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Split("a b a b a b a b", " "); !slices.Equal(order, want) {
		t.Errorf("order %v", order)
	}
	if broken != 1 {
		t.Errorf("what failed once was tried %d times", broken)
	}
	if len(b.results) != 8 {
		t.Fatalf("%d results", len(b.results))
	}
	for i, want := range []struct {
		name, rival string
		ratio, goal float64
		blank       string
	}{
		{"c, first", imagefs, 0, 0, ""},
		{"c, first", loopback, 1, 0, ""},
		{"c, first", plainCopy, 0, 0, "is broken"},
		{"c, first", "nobody", 0, 0, "not in the table of rivals"},
		{"c, warm", imagefs, 0, 0, ""},
		{"c, warm", loopback, 0.5, 2, ""},
		{"c, warm", plainCopy, 0, 0, "is broken"},
		{"c, warm", "nobody", 0, 0, "not in the table of rivals"},
	} {
		r := b.results[i]
		ratio := 0.0
		if r.Ratio != nil {
			ratio = r.Ratio.Median
		}
		if r.Case != want.name || r.Rival != want.rival || ratio != want.ratio || r.Goal != want.goal || r.Blank != want.blank {
			t.Errorf("%d: got %+v, want %+v", i, r, want)
		}
	}
	if text := b.out.(*bytes.Buffer).String(); !strings.Contains(text, "2.00*") || !strings.Contains(text, "is broken") {
		t.Errorf("the table:\n%s", text)
	}

	if err := b.hold(contest{name: "ours", ours: func(*turn) error { return os.ErrInvalid }}); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("imagefs failed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.ctx = ctx
	if err := b.hold(contest{ours: goes("a", "")}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// TestAccounting: what a child and a daemon use is in the lap, and what a turn
// set up is undone in reverse.
func TestAccounting(t *testing.T) {
	b := testBench(t)
	tn := &turn{bench: b, ctx: b.ctx}
	var undone []int
	tn.later(func() { undone = append(undone, 1) })
	tn.later(func() { undone = append(undone, 2) })

	before := usage(syscall.RUSAGE_CHILDREN).Seconds()
	if err := tn.time("child", func() error { return tn.run("/proc/self/exe", "burn") }); err != nil {
		t.Fatal(err)
	}
	used := usage(syscall.RUSAGE_CHILDREN).Seconds() - before
	if l := tn.laps["child"]; used <= 0 || l.cpu < used || l.rss < 64<<20 || l.seconds <= 0 {
		t.Errorf("a child that used %v s: %+v", used, l)
	}

	// A daemon that is there before the lap counts for what it uses in it.
	if err := tn.background(func() bool { return true }, "sh", "-c", "while :; do :; done"); err != nil {
		t.Fatal(err)
	}
	pid := tn.daemons[0]
	err := tn.time("daemon", func() error {
		for start := cpuOf(pid); cpuOf(pid) <= start; {
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if l := tn.laps["daemon"]; l.cpu <= 0 || l.rss <= tn.largest {
		t.Errorf("a daemon: %+v", l)
	}
	tn.end()
	if !slices.Equal(undone, []int{2, 1}) || syscall.Kill(pid, 0) == nil || cpuOf(pid) != 0 {
		t.Errorf("after the end: %v, process %d", undone, pid)
	}

	if err := tn.background(func() bool { return false }, "sh", "-c", "echo no luck >&2"); err == nil || !strings.Contains(err.Error(), "no luck") {
		t.Errorf("a daemon that does not start: %v", err)
	}
	tn.end()
}

func TestReportAsJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.json")
	in := report{
		Machine: machine{CPUs: 2, Load: []string{"1"}}, Size: 7, Rounds: 3,
		Results: []result{
			resultOf(result{Part: "p", Case: "c", Rival: imagefs}, []lap{{seconds: 1}}, nil, 0, 0),
			{Part: "p", Case: "c", Rival: xmount, Blank: "not here"},
		},
	}
	if err := in.write(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Rounds  int              `json:"rounds"`
		Results []map[string]any `json:"results"`
	}
	if err := json.Unmarshal(b, &doc); err != nil || doc.Rounds != 3 || len(doc.Results) != 2 {
		t.Fatalf("%v\n%s", err, b)
	}
	ran, blank := doc.Results[0], doc.Results[1]
	if s, ok := ran["seconds"].(map[string]any); !ok || s["median"] != 1.0 || ran["ratio"] != nil {
		t.Errorf("who ran: %v", ran)
	}
	if blank["seconds"] != nil || blank["blank_because_of"] != "not here" {
		t.Errorf("who did not: %v", blank)
	}
}

func TestChoose(t *testing.T) {
	all, err := choose("")
	if err != nil || len(all) != len(parts)-1 {
		t.Errorf("by default: %v %v", all, err)
	}
	two, err := choose("boot,read")
	if err != nil || len(two) != 2 || two[0].name != "boot" || two[1].name != "read" {
		t.Errorf("two: %v %v", two, err)
	}
	if _, err := choose("read,nothing"); err == nil || !strings.Contains(err.Error(), `"nothing"`) {
		t.Errorf("one that is not there: %v", err)
	}
}

// TestCopyTree: the files are the same ones each time, and no more than asked for.
func TestCopyTree(t *testing.T) {
	b := testBench(t)
	from := t.TempDir()
	for name, size := range map[string]int{"a": 10, "b": 90, "c": 20} {
		if err := os.WriteFile(filepath.Join(from, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	to := b.path("tree")
	n, err := b.copyTree(to, 40, from)
	if err != nil || n != 30 {
		t.Fatalf("copied %d, %v", n, err)
	}
	info, err := os.Stat(filepath.Join(to, from, "c"))
	if err != nil || info.Size() != 20 || info.ModTime().Unix() != epoch {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(to, from, "b")); err == nil {
		t.Error("what is too large was copied")
	}
}

// TestReadings: they read what they say, and stop when they are told.
func TestReadings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]reading{
		"whole": sequential(0, 0), "part": sequential(0, 3<<20), "random": scattered(2, 10, 4096, 1<<20), "a MiB": oneMiB,
	} {
		if err := r(t.Context(), path); err != nil && !errors.Is(err, syscall.EINVAL) { // EINVAL: no direct I/O here
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := sequential(0, 5<<20)(t.Context(), path); err == nil {
		t.Error("a file that is too short was read")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sequential(0, 0)(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("after an interrupt: %v", err)
	}
}
