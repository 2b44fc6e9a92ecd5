package main

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// A rival is a way to get at a disk in another format, or a limit of what is
// possible. One without its program is left blank in every case.
type rival struct {
	name    string
	program string // that it needs; "" for none that is not always there
	pkg     string // of Debian, that holds the program
}

const (
	imagefs     = "imagefs"
	qemuImg     = "qemu-img"
	qemuStream  = "qemu-img streamOptimized"
	download    = "download + qemu-img"
	parallelGet = "parallel GET (limit)"
	rcloneQemu  = "rclone mount + qemu-img"
	s3fsQemu    = "s3fs + qemu-img"
	rcloneMount = "rclone mount"
	rcloneFull  = "rclone mount, full cache"
	s3fsMount   = "s3fs"
	xmount      = "xmount"
	storageD    = "qemu-storage-daemon"
	loopback    = "go-fuse loopback (limit)"
	plainCopy   = "cp (limit)"
	noCache     = "imagefs without --cache-dir"
	upload      = "upload by the S3 client"
	qemuTar     = "qemu-img and tar"
)

var rivals = []rival{
	{imagefs, "", ""},
	{qemuImg, "qemu-img", "qemu-utils"},
	{qemuStream, "qemu-img", "qemu-utils"},
	{qemuTar, "qemu-img", "qemu-utils"},
	{download, "qemu-img", "qemu-utils"},
	{xmount, "xmount", "xmount"},
	{storageD, "qemu-storage-daemon", "qemu-system-common"},
	{rcloneMount, "rclone", "rclone"},
	{rcloneFull, "rclone", "rclone"},
	{rcloneQemu, "rclone", "rclone"},
	{s3fsMount, "s3fs", "s3fs"},
	{s3fsQemu, "s3fs", "s3fs"},
	{loopback, "", ""},
	{parallelGet, "", ""},
	{plainCopy, "", ""},
	{noCache, "", ""},
	{upload, "", ""},
}

// missing says why a rival cannot run here, or nothing.
func missing(name string) string {
	for _, r := range rivals {
		if r.name != name {
			continue
		}
		if r.program != "" {
			if _, err := exec.LookPath(r.program); err != nil {
				return fmt.Sprintf("%s is not installed: package %s, test/install bench", r.program, r.pkg)
			}
		}
		return ""
	}
	return "not in the table of rivals"
}

// An entrant is a rival in one case. Laps of one name are compared; a lap of
// imagefs that has no namesake is compared with the rival's lap "".
type entrant struct {
	rival string
	run   func(t *turn) error
	goal  float64 // see result
	lap   string  // of imagefs, to which the goal belongs; "" for all
	note  string
}

// A contest is the same work done by several rivals in turn, A B A B.
type contest struct {
	part, name string
	store      *s3peer // whose bytes are counted, or nil
	amount     float64 // of the work, in units that are told per second
	unit       string
	needed     int64    // bytes of the store that the work is about
	laps       []string // of imagefs, a case each; none is the lap ""
	most       float64  // times needed that imagefs is to fetch at most; see result
	long       bool     // takes so long that all rounds count
	ours       func(t *turn) error
	entrants   []entrant
}

// hold runs a contest and reports it: after a round that is not counted, since
// straight after idle everything is slower, as many as were asked for. A rival
// that fails is left blank with its reason.
func (b *bench) hold(c contest) error {
	all := append([]entrant{{rival: imagefs, run: c.ours}}, c.entrants...)
	laps, blank := make([][]map[string]lap, len(all)), make([]string, len(all))
	for i, e := range all {
		blank[i] = missing(e.rival)
	}
	rounds, uncounted := b.rounds, 1
	if c.long {
		uncounted = 0
	}
	for round := range rounds + uncounted {
		for i, e := range all {
			if blank[i] != "" {
				continue
			}
			l, err := b.turn(c.store, e.run)
			if b.ctx.Err() != nil {
				return b.ctx.Err()
			}
			if err != nil && i == 0 {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if err != nil {
				blank[i] = strings.Join(strings.Fields(err.Error()), " ")
				continue
			}
			if round >= uncounted {
				laps[i] = append(laps[i], l)
			}
		}
	}
	b.report(c, all, laps, blank)
	return nil
}

// turn lets one entrant do its work once.
func (b *bench) turn(store *s3peer, run func(t *turn) error) (laps map[string]lap, err error) {
	t := &turn{bench: b, ctx: b.ctx, store: store}
	defer t.end()
	if err := run(t); err != nil {
		return nil, err
	}
	if len(t.laps) == 0 {
		return nil, errors.New("nothing was timed")
	}
	return t.laps, nil
}

// report turns laps into results, keeps and prints them: a case for each lap of
// imagefs.
func (b *bench) report(c contest, all []entrant, laps [][]map[string]lap, blank []string) {
	names := c.laps
	if len(names) == 0 {
		names = []string{""}
	}
	for _, name := range names {
		var rows []result
		title := c.name
		if name != "" {
			title += ", " + name
		}
		for i, e := range all {
			r := result{Part: c.part, Case: title, Rival: e.rival, Unit: c.unit, Blank: blank[i], Note: e.note}
			if e.lap == "" || e.lap == name {
				r.Goal = e.goal
			}
			if r.Blank == "" {
				var ours []lap
				if i > 0 {
					ours = pick(laps[0], name)
				} else {
					r.Most = c.most
				}
				r = resultOf(r, pick(laps[i], name), ours, c.amount, c.needed)
			}
			rows = append(rows, r)
		}
		printCase(b.out, rows)
		b.results = append(b.results, rows...)
	}
}

// pick is a lap of each round: that with the name, or else the one without.
func pick(rounds []map[string]lap, name string) []lap {
	laps := make([]lap, len(rounds))
	for i, r := range rounds {
		l, ok := r[name]
		if !ok {
			l = r[""]
		}
		laps[i] = l
	}
	return laps
}
