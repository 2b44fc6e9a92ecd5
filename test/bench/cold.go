package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

var vdi = []string{"-O", "vdi"}

// served runs part with a server that has the objects.
func (b *bench) served(latency time.Duration, run func(s *s3peer) error, files ...string) error {
	s, err := b.startS3(latency)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := b.put(s, files...); err != nil {
		return err
	}
	return run(s)
}

// imagesAt are those that are compared: with a line that costs nothing, one.
func imagesAt(latency time.Duration) []string {
	if latency == 0 {
		return []string{"guest"}
	}
	return []string{"guest", "zlib"}
}

// today downloads an object and converts it, timed whole.
func (b *bench) today(s *s3peer, key string) func(t *turn) error {
	return func(t *turn) error {
		return t.time("", func() error { return t.fetchAndConvert(s, key, t.out(), vdi) })
	}
}

func (t *turn) fetchAndConvert(s *s3peer, key, out string, args []string) error {
	tmp := t.path("download-" + key)
	t.later(func() { _ = os.Remove(tmp) })
	if err := t.child("get", s.endpoint, key, tmp); err != nil {
		return err
	}
	return t.convert(tmp, out, args)
}

// first compares the time to the first MiB of a converted image in S3 with
// downloading and converting it.
func (b *bench) first() error {
	var errs []error
	for _, latency := range []time.Duration{0, far} {
		head(b.out, fmt.Sprintf("the first MiB of a cold vdi view, S3 with %v added, against download + convert", latency))
		errs = append(errs, b.served(latency, func(s *s3peer) error {
			var errs []error
			for _, image := range imagesAt(latency) {
				c := contest{
					part: "first", name: fmt.Sprintf("%s.qcow2, S3 + %v", image, latency), store: s, laps: []string{"with the mount", "in a mount"},
					ours: func(t *turn) error {
						err := t.time("with the mount", func() error {
							mnt, err := t.mountS3(s)
							if err != nil {
								return err
							}
							return oneMiB(t.ctx, disk(mnt, image, "vdi"))
						})
						if err != nil {
							return err
						}
						t.end()
						t.daemons = nil
						mnt, err := t.mountS3(s)
						if err != nil {
							return err
						}
						return t.time("in a mount", func() error { return oneMiB(t.ctx, disk(mnt, image, "vdi")) })
					},
					entrants: []entrant{{rival: download, run: b.today(s, image+".qcow2")}},
				}
				if latency == far {
					c.entrants[0].goal, c.entrants[0].lap = 50, "in a mount"
				}
				errs = append(errs, b.hold(c))
			}
			return errors.Join(errs...)
		}, "guest.qcow2", "zlib.qcow2"))
	}
	return errors.Join(errs...)
}

// cold compares the first cp of a whole view of an object with what else makes
// the same file of it, and with the line's own speed. Everything is timed whole.
func (b *bench) cold() error {
	var errs []error
	for _, latency := range []time.Duration{0, far} {
		head(b.out, fmt.Sprintf("mount and cp of a cold vdi view, S3 with %v added; fetched: bytes sent over the object's", latency))
		errs = append(errs, b.served(latency, func(s *s3peer) error {
			var errs []error
			for _, image := range imagesAt(latency) {
				errs = append(errs, b.coldOne(s, image, latency))
			}
			return errors.Join(errs...)
		}, "guest.qcow2", "zlib.qcow2"))
	}
	return errors.Join(errs...)
}

func (b *bench) coldOne(s *s3peer, image string, latency time.Duration) error {
	key := image + ".qcow2"
	size, err := sizeOf(b.path("store", key))
	if err != nil {
		return err
	}
	c := contest{
		part: "cold", name: fmt.Sprintf("%s, S3 + %v", key, latency), store: s, needed: size, most: 1.05, amount: float64(b.size >> 20), unit: "MiB/s",
		ours: func(t *turn) error {
			return t.time("", func() error {
				mnt, err := t.mountS3(s)
				if err != nil {
					return err
				}
				return t.run("cp", disk(mnt, image, "vdi"), t.out())
			})
		},
		entrants: []entrant{
			{rival: download, goal: 1.5, run: b.today(s, key)},
			{rival: parallelGet, run: func(t *turn) error {
				return t.time("", func() error { return t.child("get-8", s.endpoint, key, t.out()) })
			}},
		},
	}
	if latency == far {
		c.entrants[1].goal = 0.85
		mounts := func(show func(t *turn) (string, error)) func(t *turn) error {
			return func(t *turn) error {
				return t.time("", func() error {
					mnt, err := show(t)
					if err != nil {
						return err
					}
					// One request at a time: out of order, rclone opens a new one for each
					// and takes ten times as long.
					return t.run("qemu-img", slices.Concat([]string{"convert", "-W", "-m", "1"}, vdi, []string{filepath.Join(mnt, key), t.out()})...)
				})
			}
		}
		c.entrants = append(c.entrants,
			entrant{rival: rcloneQemu, goal: 1, run: mounts(func(t *turn) (string, error) { return t.rclone(s) })},
			entrant{rival: s3fsQemu, goal: 1, run: mounts(func(t *turn) (string, error) { return t.s3fs(s) })},
		)
	}
	return b.hold(c)
}

// random compares cold reads at random places over a slow line: those of a raw
// view with those of the object itself through mounts of the bucket.
func (b *bench) random() error {
	head(b.out, fmt.Sprintf("random 64 KiB, cold, S3 with %v added; fetched: bytes sent over bytes read", far))
	return b.served(far, func(s *s3peer) error {
		var errs []error
		const piece = 64 << 10
		for _, k := range []struct{ readers, reads int }{{1, 100}, {8, 50}} {
			n := k.readers * k.reads
			// through reads a file of a new mount at random.
			through := func(show func(t *turn) (string, error)) func(t *turn) error {
				return func(t *turn) error {
					path, err := show(t)
					if err != nil {
						return err
					}
					return t.time("", func() error { return scattered(k.readers, k.reads, piece, b.size)(t.ctx, path) })
				}
			}
			key := "guest.qcow2"
			errs = append(errs, b.hold(contest{
				part: "random", name: fmt.Sprintf("plain qcow2, %d readers", k.readers), store: s,
				needed: int64(n) * piece, most: 2, amount: float64(n), unit: "reads/s",
				ours: through(func(t *turn) (string, error) {
					mnt, err := t.mountS3(s)
					return disk(mnt, "guest", "raw"), err
				}),
				entrants: []entrant{
					{rival: rcloneMount, goal: 1, run: through(func(t *turn) (string, error) {
						mnt, err := t.rclone(s)
						return filepath.Join(mnt, key), err
					})},
					{rival: rcloneFull, goal: 1, run: through(func(t *turn) (string, error) {
						mnt, err := t.rclone(s, "--vfs-cache-mode", "full")
						return filepath.Join(mnt, key), err
					})},
					{rival: s3fsMount, goal: 1, run: through(func(t *turn) (string, error) {
						mnt, err := t.s3fs(s)
						return filepath.Join(mnt, key), err
					})},
				},
			}))
		}
		return errors.Join(errs...)
	}, "guest.qcow2")
}
