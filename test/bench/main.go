// Command bench compares imagefs with what users do today, side by side in one
// run, and prints ratios: above 1 means that imagefs is faster.
//
// Machines are shared and noisy. Rivals run in turn, A B A B, after one turn
// that is not counted: straight after idle everything is slower. Printed are
// the medians of the times, and the median, least and greatest of the ratios
// within a turn. Nothing here passes or fails.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

type bench struct {
	imagefs, s3server string
	dir               string
	rounds            int
	size              int64 // bytes of the files in the guest
	out               io.Writer
}

func main() {
	log.SetFlags(0)
	if len(os.Args) > 1 && os.Args[1] == "loopback" {
		if err := serveLoopback(os.Args[2], os.Args[3]); err != nil {
			log.Fatal(err)
		}
		return
	}
	b := &bench{out: os.Stdout}
	flag.StringVar(&b.imagefs, "imagefs", "bin/imagefs", "the program")
	flag.StringVar(&b.s3server, "s3server", "bin/s3server", "the S3 server of the tests")
	flag.IntVar(&b.rounds, "rounds", 3, "rounds of each comparison, after one that is not counted")
	size := flag.Int64("size", 512, "MiB of files in the guest")
	only := flag.String("only", "", "run only this part: convert, coded, read, first, disk, import or flavours")
	flag.Parse()
	if b.rounds < 1 || *size < 4 || flag.NArg() > 0 {
		log.Fatal("usage: bench [flags]; at least 1 round and 4 MiB")
	}
	b.size = *size << 20
	if err := b.run(*only); err != nil {
		log.Fatal(err)
	}
}

func (b *bench) run(only string) (err error) {
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
	defer os.RemoveAll(b.dir)
	if err := b.guest(); err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		run  func() error
	}{
		{"convert", b.convert},
		{"coded", b.coded},
		{"read", b.read},
		{"first", b.first},
		{"disk", b.disk},
		{"import", b.imports},
		{"flavours", b.flavours},
	} {
		if only != "" && only != part.name {
			continue
		}
		if err := part.run(); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

func (b *bench) path(elem ...string) string {
	return filepath.Join(append([]string{b.dir}, elem...)...)
}

// guest makes a file system of real files, as a plain, a zlib and a zstd qcow2.
func (b *bench) guest() error {
	if err := os.Mkdir(b.path("store"), 0o755); err != nil {
		return err
	}
	fmt.Fprintln(b.out, "making a guest of real files ...")
	raw, tree := b.path("guest.raw"), b.path("tree")
	if err := copyTree(tree, b.size, "/usr/lib", "/usr/share", "/usr/bin"); err != nil {
		return err
	}
	return errors.Join(
		command("truncate", "-s", strconv.FormatInt(2*b.size+64<<20, 10), raw), // half empty
		command("mkfs.ext4", "-q", "-d", tree, raw),
		os.RemoveAll(tree),
		command("qemu-img", "convert", "-O", "qcow2", raw, b.path("store", "guest.qcow2")),
		command("qemu-img", "convert", "-c", "-m", "8", "-O", "qcow2", raw, b.path("store", "zlib.qcow2")),
		command("qemu-img", "convert", "-c", "-m", "8", "-O", "qcow2", "-o", "compression_type=zstd", raw, b.path("store", "zstd.qcow2")),
		os.Remove(raw),
	)
}

// copyTree copies regular files below the folders from, up to n bytes of them.
func copyTree(to string, n int64, from ...string) error {
	for _, root := range from {
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			if n <= 0 {
				return filepath.SkipAll
			}
			info, err := d.Info()
			if err != nil || info.Size() > n {
				return nil
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			n -= int64(len(data))
			dst := filepath.Join(to, path)
			if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
				return err
			}
			return os.WriteFile(dst, data, 0o644)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// command runs a program and returns its error with what it printed.
func command(name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// mount mounts a store and returns what unmounts it.
func (b *bench) mount(store string, args ...string) (mnt string, done func(), err error) {
	if mnt, err = os.MkdirTemp(b.dir, "mnt"); err != nil {
		return "", nil, err
	}
	err = command(b.imagefs, append(append([]string{"mount", "--formats", "all"}, args...), store, mnt)...)
	return mnt, func() { command("umount", mnt) }, err
}

func timed(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}

// turns calls turn, which runs rivals one after the other and returns the time
// of each: once uncounted, and then for every round. It returns the times of
// each rival.
func (b *bench) turns(turn func() ([]time.Duration, error)) ([][]time.Duration, error) {
	var times [][]time.Duration
	for i := range b.rounds + 1 {
		took, err := turn()
		if err != nil {
			return nil, err
		}
		if i == 0 {
			times = make([][]time.Duration, len(took))
			continue
		}
		for k, d := range took {
			times[k] = append(times[k], d)
		}
	}
	return times, nil
}

// versus runs two rivals in turn and prints a row.
func (b *bench) versus(what string, ours, theirs func() (time.Duration, error)) error {
	times, err := b.turns(func() ([]time.Duration, error) {
		d, err := ours()
		if err != nil {
			return nil, err
		}
		e, err := theirs()
		return []time.Duration{d, e}, err
	})
	if err != nil {
		return err
	}
	b.row(what, times[0], times[1])
	return nil
}

// row prints a comparison of times that were taken in turn.
func (b *bench) row(what string, ours, theirs []time.Duration) {
	ratios := make([]float64, len(ours))
	for i := range ratios {
		ratios[i] = theirs[i].Seconds() / ours[i].Seconds()
	}
	fmt.Fprintf(b.out, "  %-48s %8.3f s  %8.3f s  %7.2f %7.2f %7.2f\n", what,
		median(ours).Seconds(), median(theirs).Seconds(), median(ratios), slices.Min(ratios), slices.Max(ratios))
}

func (b *bench) head(title, ours, theirs string) {
	fmt.Fprintf(b.out, "\n%s\n  %-48s %10s  %10s  %7s %7s %7s\n", title, "", ours, theirs, "ratio", "min", "max")
}

// median is the middle value, the upper one of two.
func median[T cmp.Ordered](values []T) T {
	return slices.Sorted(slices.Values(values))[len(values)/2]
}

// qemuName is what qemu-img calls a view.
var qemuName = []struct {
	view string
	args []string
}{
	{"raw", []string{"-O", "raw"}},
	{"vdi", []string{"-O", "vdi"}},
	{"vhd", []string{"-O", "vpc"}},
	{"vhdx", []string{"-O", "vhdx"}},
	{"sparse.vmdk", []string{"-O", "vmdk"}},
	{"vmdk", streamOptimized},
}

// convertOne compares cp of a view with the conversion of its source: the
// first cp, of a view of which the kernel holds no page, and later ones, which
// it answers itself. The source is in the page cache all the time.
func (b *bench) convertOne(source, image, view string, args []string) error {
	src, out := b.path("store", source), b.path("out")
	cp := func(path string) (time.Duration, error) {
		defer os.Remove(out)
		return timed(func() error { return command("cp", path, out) })
	}
	times, err := b.turns(func() ([]time.Duration, error) {
		mnt, done, err := b.mount(b.path("store"))
		if err != nil {
			return nil, err
		}
		path := filepath.Join(mnt, "images", image, "disk0."+view)
		first, err1 := cp(path)
		warm, err2 := cp(path)
		done()
		defer os.Remove(out)
		theirs, err3 := timed(func() error {
			return command("qemu-img", slices.Concat([]string{"convert", "-W", "-m", "8"}, args, []string{src, out})...)
		})
		return []time.Duration{first, warm, theirs}, errors.Join(err1, err2, err3)
	})
	if err != nil {
		return err
	}
	b.row(source+" -> "+view+", first", times[0], times[2])
	b.row(source+" -> "+view+", warm", times[1], times[2])
	return nil
}

func (b *bench) convert() error {
	b.head("cp of a view against qemu-img convert -W -m 8 to the same format, plain source", "cp", "qemu-img")
	// The qcow2 view is that of a source in another format.
	if err := command("qemu-img", "convert", "-O", "vdi", b.path("store", "guest.qcow2"), b.path("store", "other.vdi")); err != nil {
		return err
	}
	defer os.Remove(b.path("store", "other.vdi"))
	if err := b.convertOne("other.vdi", "other", "qcow2", []string{"-O", "qcow2"}); err != nil {
		return err
	}
	for _, q := range qemuName {
		if err := b.convertOne("guest.qcow2", "guest", q.view, q.args); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) coded() error {
	b.head("cp of a view against qemu-img convert -W -m 8, compressed qcow2", "cp", "qemu-img")
	for _, image := range []string{"zlib", "zstd"} {
		for _, q := range qemuName {
			if q.view != "raw" && q.view != "vhdx" {
				continue
			}
			if err := b.convertOne(image+".qcow2", image, q.view, q.args); err != nil {
				return err
			}
		}
	}
	return nil
}

// read compares reads of a view with reads of the same bytes as a plain file
// through the library's own loopback.
func (b *bench) read() error {
	mnt, done, err := b.mount(b.path("store"))
	if err != nil {
		return err
	}
	defer done()
	view := filepath.Join(mnt, "images/guest/disk0.vdi")
	plain := b.path("plain")
	if err := errors.Join(os.Mkdir(plain, 0o755), command("cp", view, filepath.Join(plain, "disk"))); err != nil {
		return err
	}
	defer os.RemoveAll(plain)
	b.head("reads of a view (vdi of a plain qcow2) against a go-fuse loopback of the same bytes", "imagefs", "loopback")
	for _, k := range []struct {
		name string
		read func(path string) error
	}{
		{"sequential, 1 MiB, page cache", sequential(0)},
		{"sequential, 1 MiB, O_DIRECT", sequential(directFlag)},
		{"random 4 KiB, 1 reader, 20,000 reads, O_DIRECT", random(1, 20000)},
		{"random 4 KiB, 8 readers, 80,000 reads, O_DIRECT", random(8, 10000)},
	} {
		// Both are mounted anew, so that the kernel holds no pages.
		err := b.versus(k.name, func() (time.Duration, error) {
			m, done, err := b.mount(b.path("store"))
			if err != nil {
				return 0, err
			}
			defer done()
			return timed(func() error { return k.read(filepath.Join(m, "images/guest/disk0.vdi")) })
		}, func() (time.Duration, error) {
			loop, done, err := b.loopback(plain)
			if err != nil {
				return 0, err
			}
			defer done()
			return timed(func() error { return k.read(filepath.Join(loop, "disk")) })
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func sequential(flags int) func(string) error {
	return func(path string) error {
		f, err := os.OpenFile(path, os.O_RDONLY|flags, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		buf := aligned(1 << 20)
		for {
			if _, err := f.Read(buf); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
}

func random(readers, reads int) func(string) error {
	return func(path string) error {
		f, err := os.OpenFile(path, os.O_RDONLY|directFlag, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		errs := make([]error, readers)
		var wg sync.WaitGroup
		for i := range readers {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(1, uint64(i)))
				buf := aligned(4096)
				for range reads {
					if _, err := f.ReadAt(buf, rng.Int64N(info.Size()/4096)*4096); err != nil {
						errs[i] = err
						return
					}
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
}

// first compares the time to the first MiB of a converted image in S3 with
// downloading and converting it.
func (b *bench) first() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s3, err := b.startS3(ctx)
	if err != nil {
		return err
	}
	defer s3.stop()
	for _, image := range []string{"guest", "zlib"} {
		if err := s3.upload(ctx, b.path("store", image+".qcow2"), image+".qcow2"); err != nil {
			return err
		}
	}
	b.head("an image in S3: a view against download + qemu-img convert -W -m 8", "view", "today")
	for _, image := range []string{"guest", "zlib"} {
		out := b.path("out")
		today := func() (time.Duration, error) {
			tmp := b.path("download")
			defer os.Remove(tmp)
			defer os.Remove(out)
			return timed(func() error {
				return errors.Join(s3.download(ctx, image+".qcow2", tmp),
					command("qemu-img", "convert", "-W", "-m", "8", "-f", "qcow2", "-O", "vdi", tmp, out))
			})
		}
		// The mount is part of what is timed, the unmount is not.
		cold := func(read func(path string) error) func() (time.Duration, error) {
			return func() (time.Duration, error) {
				done := func() {}
				defer func() { done() }()
				return timed(func() error {
					mnt, unmount, err := b.mount("s3://bench", "--endpoint", s3.endpoint)
					if err != nil {
						return err
					}
					done = unmount
					return read(filepath.Join(mnt, "images", image, "disk0.vdi"))
				})
			}
		}
		if err := b.versus(image+".qcow2, mount and first MiB of vdi, cold", cold(func(path string) error {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.ReadFull(io.NewSectionReader(f, 2<<20, 1<<20), make([]byte, 1<<20))
			return err
		}), today); err != nil {
			return err
		}
		if err := b.versus(image+".qcow2, mount and cp of vdi, cold", cold(func(path string) error {
			defer os.Remove(out)
			return command("cp", path, out)
		}), today); err != nil {
			return err
		}
	}
	return nil
}
