// Command bench compares imagefs with what users do today, side by side in one
// run, and prints ratios: above 1 means that imagefs is faster.
//
// Machines are shared and noisy. Each pair of rivals runs in turn, several
// rounds; the ratio is that of the medians. Nothing here passes or fails.
package main

import (
	"bytes"
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
	"strings"
	"sync"
	"time"
)

type bench struct {
	imagefs, s3server string
	dir               string
	rounds            int
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
	flag.IntVar(&b.rounds, "rounds", 3, "rounds of each comparison")
	only := flag.String("only", "", "run only this part: convert, coded, read or first")
	flag.Parse()
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
		{"convert", b.convert}, {"coded", b.coded}, {"read", b.read}, {"first", b.first},
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
	if err := copyTree(tree, 1<<30, "/usr/lib", "/usr/share", "/usr/bin"); err != nil {
		return err
	}
	return errors.Join(
		command("truncate", "-s", "2G", raw),
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

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// versus runs two rivals in turn and prints a row.
func (b *bench) versus(what string, ours, theirs func() error) error {
	var a, c []time.Duration
	for range b.rounds {
		d, err := timed(ours)
		if err != nil {
			return err
		}
		e, err := timed(theirs)
		if err != nil {
			return err
		}
		a, c = append(a, d), append(c, e)
	}
	b.row(what, median(a), median(c))
	return nil
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
	{"vmdk", []string{"-O", "vmdk", "-o", "subformat=streamOptimized"}},
}

// convertOne compares cp of a view with the conversion of its source: the
// first cp, of a view of which the kernel holds no page, and later ones, which
// it answers itself. The source is in the page cache all the time.
func (b *bench) convertOne(source, image, view string, args []string) error {
	src, out := b.path("store", source), b.path("out")
	defer os.Remove(out)
	var first, warm, theirs []time.Duration
	for range b.rounds {
		mnt, done, err := b.mount(b.path("store"))
		if err != nil {
			return err
		}
		for _, to := range []*[]time.Duration{&first, &warm} {
			d, err := timed(func() error { return command("cp", filepath.Join(mnt, "images", image, "disk0."+view), out) })
			os.Remove(out)
			if err != nil {
				done()
				return err
			}
			*to = append(*to, d)
		}
		done()
		d, err := timed(func() error {
			return command("qemu-img", append(append([]string{"convert", "-W", "-m", "8"}, args...), src, out)...)
		})
		os.Remove(out)
		if err != nil {
			return err
		}
		theirs = append(theirs, d)
	}
	b.row(source+" -> "+view+", first", median(first), median(theirs))
	b.row(source+" -> "+view+", warm", median(warm), median(theirs))
	return nil
}

// row prints a comparison.
func (b *bench) row(what string, ours, theirs time.Duration) {
	fmt.Fprintf(b.out, "  %-48s %8.3f s  %8.3f s  %7.2f\n", what, ours.Seconds(), theirs.Seconds(), theirs.Seconds()/ours.Seconds())
}

func (b *bench) head(title, ours, theirs string) {
	fmt.Fprintf(b.out, "\n%s\n  %-48s %10s  %10s  %7s\n", title, "", ours, theirs, "ratio")
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
		var a, c []time.Duration
		for range b.rounds {
			// Both are mounted anew, so that the kernel holds no pages.
			m, done, err := b.mount(b.path("store"))
			if err != nil {
				return err
			}
			d, err := timed(func() error { return k.read(filepath.Join(m, "images/guest/disk0.vdi")) })
			done()
			if err != nil {
				return err
			}
			loop, done, err := b.loopback(plain)
			if err != nil {
				return err
			}
			e, err := timed(func() error { return k.read(filepath.Join(loop, "disk")) })
			done()
			if err != nil {
				return err
			}
			a, c = append(a, d), append(c, e)
		}
		b.row(k.name, median(a), median(c))
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
		today := func() error {
			tmp, out := b.path("download"), b.path("out")
			defer os.Remove(tmp)
			defer os.Remove(out)
			return errors.Join(s3.download(ctx, image+".qcow2", tmp),
				command("qemu-img", "convert", "-W", "-m", "8", "-f", "qcow2", "-O", "vdi", tmp, out))
		}
		cold := func(read func(path string) error) func() error {
			return func() error {
				mnt, done, err := b.mount("s3://bench", "--endpoint", s3.endpoint)
				if err != nil {
					return err
				}
				defer done()
				return read(filepath.Join(mnt, "images", image, "disk0.vdi"))
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
		out := b.path("out")
		if err := b.versus(image+".qcow2, mount and cp of vdi, cold", cold(func(path string) error {
			defer os.Remove(out)
			return command("cp", path, out)
		}), today); err != nil {
			return err
		}
	}
	return nil
}
