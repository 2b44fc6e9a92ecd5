package disk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// childEnv names the folder that a child process of these tests works in.
const childEnv = "IMAGEFS_TEST_DISK_CACHE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

// child fills a folder until it is killed, units one by one and many at once, in any
// order. Chunks push each other out.
func child(dir string) {
	c, err := open(Config{Dir: dir, Size: minSize}, system{writeAt, plenty})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	o := object(c, "a")
	if err := o.Store(context.Background(), unit(0), 0); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	for {
		n := 1 + rand.IntN(1<<rand.IntN(6))
		i := rand.IntN(killUnits - n)
		p := make([]byte, n*Unit)
		if n, kept := o.Load(p, int64(i)*Unit); !kept {
			o.Save(units(i, n/Unit), int64(i)*Unit)
		}
	}
}

// killUnits is how many units a child works on, more than fit.
const killUnits = 3 * minSize / Unit / 2

// startChild starts a child and waits until it has written a unit.
func startChild(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	return cmd
}

// TestKilledAtAnyMoment kills a process that writes and evicts, again and again:
// whatever is then there is right, and is gone on with.
func TestKilledAtAnyMoment(t *testing.T) {
	kills := 10
	if n, err := strconv.Atoi(os.Getenv("IMAGEFS_KILLS")); err == nil {
		kills = n
	}
	dir := t.TempDir()
	found := 0
	for range kills {
		cmd := startChild(t, dir)
		time.Sleep(time.Duration(rand.IntN(int(60 * time.Millisecond)))) // when to kill, no proof
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()

		c := start(t, Config{Dir: dir}, system{})
		o := object(c, "a")
		for i := range killUnits {
			if load(t, o, i) {
				found++
			}
		}
		if s := c.Stats(); s.Damaged != 0 || s.Errors != 0 {
			t.Errorf("got %+v", s)
		}
		c.Close()
	}
	if found == 0 {
		t.Error("no unit outlived a kill")
	}
}

func TestTwoProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	cmd := startChild(t, dir)
	if _, err := Open(Config{Dir: dir, Size: minSize}); !errors.Is(err, ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = cmd.Process.Kill() })
	c, err := Open(Config{Dir: dir, Size: minSize, Wait: patience}) // the lock ends with its process
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
