package main

import (
	"errors"
	"os"
	"path/filepath"
)

// read compares reads of a view with reads of as many bytes through the library's
// own loopback of a copy, and through other programs that show a disk.
func (b *bench) read() error {
	head(b.out, "reads of a view (vdi, plain qcow2 as source) against a go-fuse loopback of a copy, all in new mounts")
	plain := b.path("plain")
	defer os.RemoveAll(plain)
	t := &turn{bench: b, ctx: b.ctx}
	mnt, err := t.mount(b.path("store"), "--read-only")
	if err == nil {
		err = errors.Join(os.Mkdir(plain, 0o755), t.run("cp", disk(mnt, "guest", "vdi"), filepath.Join(plain, "disk")))
	}
	t.end()
	if err != nil {
		return err
	}
	n := b.size // of each file: the others show the disk's free space as well
	var errs []error
	for _, k := range []struct {
		name   string
		read   reading
		amount float64
		unit   string
		goal   float64
	}{
		{"sequential, 1 MiB, page cache", sequential(0, n), float64(n >> 20), "MiB/s", 0.9},
		{"sequential, 1 MiB, O_DIRECT", sequential(direct, n), float64(n >> 20), "MiB/s", 0.9},
		{"random 4 KiB, 1 reader, O_DIRECT", scattered(1, 20000, 4096, n), 20000, "reads/s", 0},
		{"random 4 KiB, 8 readers, O_DIRECT", scattered(8, 10000, 4096, n), 80000, "reads/s", 0.8},
	} {
		// through reads what a turn shows.
		through := func(show func(t *turn) (string, error)) func(t *turn) error {
			return func(t *turn) error {
				path, err := show(t)
				if err != nil {
					return err
				}
				return t.time("", func() error { return k.read(t.ctx, path) })
			}
		}
		errs = append(errs, b.hold(contest{
			part: "read", name: k.name, amount: k.amount, unit: k.unit,
			ours: through(func(t *turn) (string, error) {
				mnt, err := t.mount(b.path("store"), "--read-only")
				return disk(mnt, "guest", "vdi"), err
			}),
			entrants: []entrant{
				{rival: loopback, goal: k.goal, run: through(func(t *turn) (string, error) {
					mnt, err := t.loopback(plain)
					return filepath.Join(mnt, "disk"), err
				})},
				{rival: xmount, goal: 1, run: through(func(t *turn) (string, error) {
					mnt, err := t.xmounted(b.raw(), "vdi")
					return filepath.Join(mnt, "guest.vdi"), err
				})},
				{rival: storageD, goal: 1, run: through(func(t *turn) (string, error) { return t.exported(b.path("store", "guest.qcow2")) })},
			},
		}))
	}
	return errors.Join(errs...)
}
