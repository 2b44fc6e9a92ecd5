package codec_test

import (
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"

	"imagefs/codec"
)

func TestMachineProps(t *testing.T) {
	m := codec.Machine{
		CPUs: 4, MemoryMiB: 2048, Firmware: "uefi", OS: "Debian", OSVersion: "12", Arch: "x86_64",
		Description: "web\nserver", Extra: map[string]string{"ova.os_type": "debian12_64Guest"},
	}
	props := m.Props()
	want := map[string]string{
		"cpus": "4", "memory_mib": "2048", "firmware": "uefi", "os": "Debian", "os_version": "12",
		"architecture": "x86_64", "description": "web\nserver", "ova.os_type": "debian12_64Guest",
	}
	if !maps.Equal(props, want) {
		t.Errorf("got %v, want %v", props, want)
	}
	props["owner"] = "anybody"
	props["oci.image_metadata"] = "{}"
	var back codec.Machine
	if err := back.SetProps(props, "ova"); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, m) {
		t.Errorf("got %+v, want %+v", back, m)
	}
	if got := (&codec.Machine{}).Props(); len(got) != 0 {
		t.Errorf("properties of nothing: %v", got)
	}
}

func TestMachinePropsRefusals(t *testing.T) {
	for name, bad := range map[string][]string{
		"cpus":       {"two", "-1", "99999999999999999999", "5000", "9223372036854775807"},
		"memory_mib": {"1G", "-5", "999999999999"},
		"firmware":   {"coreboot"},
		"os":         {"a\x00b", strings.Repeat("x", 5000), "\xff"},
	} {
		for _, value := range bad {
			var m codec.Machine
			err := m.SetProps(map[string]string{name: value}, "ova")
			if !errors.Is(err, codec.ErrNotPossible) || len(err.Error()) > 300 {
				t.Errorf("%s %.40q: %v", name, value, err)
			}
		}
	}
}
