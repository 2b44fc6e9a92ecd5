// Command bench compares imagefs with what users do today, side by side in one
// run, and prints ratios: above 1 means that imagefs is faster.
//
// Machines are shared and noisy. Rivals run in turn, A B A B, after one round
// that is not counted. Printed are the median, least and greatest of the times,
// and of the ratios within a round; the processor time of all processes of a
// rival and their peak memory. Nothing here passes or fails.
//
// A part is a file with a list of contests (contest in rival.go); a rival is a
// line in the table there and a function in peers.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

type bench struct {
	ctx               context.Context // done at an interrupt
	imagefs, s3server string
	dir               string // of everything that a run makes
	rounds            int
	size              int64 // bytes of the files in the guest
	rate              int64 // bytes per second of one connection of a store; 0 is no limit
	out               io.Writer
	results           []result
	settings          map[string][]string // of qemu-img, the best for a conversion
}

// A part is what -only selects.
type part struct {
	name   string
	run    func(b *bench) error
	extra  bool // only if it is asked for
	ground func(b *bench) error
}

var parts = []part{
	{name: "convert", run: (*bench).convert, ground: (*bench).guest},
	{name: "coded", run: (*bench).coded, ground: (*bench).guest},
	{name: "read", run: (*bench).read, ground: (*bench).guest},
	{name: "first", run: (*bench).first, ground: (*bench).guest},
	{name: "cold", run: (*bench).cold, ground: (*bench).guest},
	{name: "random", run: (*bench).random, ground: (*bench).guest},
	{name: "disk", run: (*bench).disk, ground: (*bench).guest},
	{name: "import", run: (*bench).imports, ground: (*bench).guest},
	{name: "flavours", run: (*bench).flavours, ground: (*bench).guest},
	{name: "boot", run: (*bench).boot, extra: true},
}

func partNames() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

func main() {
	log.SetFlags(0)
	if len(os.Args) > 1 {
		if sub, ok := children[os.Args[1]]; ok {
			if err := sub(os.Args[2:]); err != nil {
				log.Fatal(err)
			}
			return
		}
	}
	b := &bench{out: os.Stdout, settings: map[string][]string{}}
	flag.StringVar(&b.imagefs, "imagefs", "bin/imagefs", "the program")
	flag.StringVar(&b.s3server, "s3server", "bin/s3server", "the S3 server of the tests")
	flag.IntVar(&b.rounds, "rounds", 3, "rounds of each comparison, after one that is not counted")
	size := flag.Int64("size", 0, "MiB of files in the guest (default 1536, or 512 where memory is short)")
	rate := flag.Int64("rate", 0, "MiB per second that one connection of the S3 server gives; S3 gives about 90 (default no limit)")
	only := flag.String("only", "", "run only these parts, comma separated: "+strings.Join(partNames(), ", ")+" (default all but boot)")
	doc := flag.String("json", "", "write the results to this file as well")
	flag.Parse()
	if b.rounds < 1 || *size < 0 || *size > 0 && *size < 4 || *rate < 0 || flag.NArg() > 0 {
		log.Fatal("usage: bench [flags]; at least 1 round and 4 MiB")
	}
	chosen, err := choose(*only)
	if err != nil {
		log.Fatal(err)
	}
	b.size, b.rate = *size<<20, *rate<<20
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	b.ctx = ctx
	err = b.run(chosen, *doc)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

// choose finds parts by a list of names; without one, all that are not extra.
func choose(list string) (chosen []part, err error) {
	if list == "" {
		return slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return p.extra }), nil
	}
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(parts, func(p part) bool { return p.name == name })
		if i < 0 {
			return nil, fmt.Errorf("-only %q: no such part; there are %s", name, strings.Join(partNames(), ", "))
		}
		chosen = append(chosen, parts[i])
	}
	return chosen, nil
}

// run runs parts. One that fails does not keep the others from running.
func (b *bench) run(chosen []part, doc string) (err error) {
	for _, p := range []*string{&b.imagefs, &b.s3server} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	root := os.TempDir()
	if _, err := os.Stat("/dev/shm"); err == nil {
		root = "/dev/shm" // memory, so that no disk is measured
	}
	if b.dir, err = os.MkdirTemp(root, "imagefs-bench"); err != nil {
		return err
	}
	defer b.sweep()
	if b.size == 0 {
		b.size = sizeThatFits(b.dir)
	}
	here := thisMachine(b.dir)
	fmt.Fprintln(b.out, here)
	var errs []error
	for _, p := range chosen {
		if p.ground != nil {
			if err := p.ground(b); err != nil {
				return errors.Join(b.ctx.Err(), err)
			}
		}
		start := time.Now()
		if err := p.run(b); err != nil {
			err = fmt.Errorf("%s: %w", p.name, err)
			fmt.Fprintln(b.out, "  failed:", err)
			errs = append(errs, err)
		}
		if b.ctx.Err() != nil {
			errs = []error{errors.New("interrupted")}
			break
		}
		fmt.Fprintf(b.out, " %s took %.0f s\n", p.name, time.Since(start).Seconds())
	}
	here.loadNow()
	fmt.Fprintf(b.out, "\nload at the end: %s\n", here.Load[1])
	if doc != "" {
		r := report{Machine: here, Size: b.size, Rounds: b.rounds, Rate: b.rate, Results: b.results}
		errs = append(errs, r.write(doc))
	}
	return errors.Join(errs...)
}

// sweep removes everything that a run made, unless something is still mounted
// there: then it would remove what is behind it.
func (b *bench) sweep() {
	entries, _ := os.ReadDir(b.dir)
	for _, e := range entries {
		unmount(filepath.Join(b.dir, e.Name()))
		if mounted(filepath.Join(b.dir, e.Name())) {
			log.Printf("%s is still mounted: nothing was removed", filepath.Join(b.dir, e.Name()))
			return
		}
	}
	_ = os.RemoveAll(b.dir)
}

func (b *bench) path(elem ...string) string {
	return filepath.Join(append([]string{b.dir}, elem...)...)
}

// command runs a program outside of what is timed.
func (b *bench) command(name string, args ...string) error {
	t := &turn{bench: b, ctx: b.ctx}
	return t.run(name, args...)
}
