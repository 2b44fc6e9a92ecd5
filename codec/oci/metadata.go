package oci

import (
	"encoding/json"
	"strings"

	"imagefs/codec"
)

// extra is the key of [codec.Machine.Extra] that holds the JSON.
const extra = "oci.image_metadata"

// least is the metadata of a machine of which nothing is known.
const least = `{"version":2,` +
	`"externalLaunchOptions":{"firmware":"BIOS","networkType":"PARAVIRTUALIZED","bootVolumeType":"PARAVIRTUALIZED",` +
	`"remoteDataVolumeType":"PARAVIRTUALIZED","localDataVolumeType":"PARAVIRTUALIZED","launchOptionsSource":"PARAVIRTUALIZED",` +
	`"pvAttachmentVersion":2,"pvEncryptionInTransitEnabled":false,"consistentVolumeNamingEnabled":false},` +
	`"imageCapabilityData":null,"imageCapsFormatVersion":null,` +
	`"operatingSystem":"Custom","operatingSystemVersion":"",` +
	`"additionalMetadata":{"shapeCompatibilities":[]}}`

// ampere are the shapes of an image for aarch64, which the service does not
// offer unless they are listed.
const ampere = `{"all":[` +
	`{"internalShapeName":"VM.Standard.A1.Flex","ocpuConstraints":{"min":1,"max":80},"memoryConstraints":{"minInGBs":1,"maxInGBs":512}},` +
	`{"internalShapeName":"VM.Standard.A2.Flex","ocpuConstraints":{"min":1,"max":78},"memoryConstraints":{"minInGBs":1,"maxInGBs":946}}]}`

// firmwares are the names of the service and of [codec.Machine].
var firmwares = map[string]string{"BIOS": "bios", "UEFI_64": "uefi"}

func firmwareName(f string) string {
	return map[string]string{"bios": "BIOS", "uefi": "UEFI_64"}[f]
}

func must(text string) *object {
	o, err := parseObject([]byte(text))
	if err != nil {
		panic("oci: " + err.Error()) // a constant
	}
	return o
}

// metadata writes what m says.
func metadata(m *codec.Machine) string {
	o, fresh := must(least), true
	if old, err := parseObject([]byte(m.Extra[extra])); err == nil && old.vals["version"] == json.Number("2") {
		o, fresh = old, false
	}
	cpu := codec.Arch(m.Arch)
	arm := cpu == "aarch64" || cpu == "" && o.arch() == "aarch64"
	launch := o.object("externalLaunchOptions")
	firmware := firmwareName(m.Firmware)
	if firmware == "" && arm && fresh {
		firmware = "UEFI_64"
	}
	if firmware != "" && firmware != launch.text("firmware") {
		if launch.text("firmware") != "" {
			// The capabilities name a firmware too, and would deny it.
			o.set("imageCapabilityData", nil)
			o.set("imageCapsFormatVersion", nil)
		}
		launch.set("firmware", firmware)
		o.set("externalLaunchOptions", launch)
	}
	if m.OS != "" && m.OS != o.text("operatingSystem") {
		o.set("operatingSystem", m.OS)
	}
	if m.OSVersion != "" && m.OSVersion != o.text("operatingSystemVersion") {
		o.set("operatingSystemVersion", m.OSVersion)
	}
	if was := o.arch(); cpu != "" && cpu != was {
		shapes := []any{}
		if arm {
			shapes = must(ampere).vals["all"].([]any)
		}
		if arm || was == "aarch64" {
			more := o.object("additionalMetadata")
			more.set("shapeCompatibilities", shapes)
			o.set("additionalMetadata", more)
		}
	}
	return o.String()
}

// arch tells the processor by the shapes: those of Ampere are named VM.Standard.A1
// and so on. An image that lists none is for x86.
func (o *object) arch() string {
	list, _ := o.object("additionalMetadata").vals["shapeCompatibilities"].([]any)
	arm := 0
	for _, s := range list {
		if s, ok := s.(*object); ok && isArm(s.text("internalShapeName")) {
			arm++
		}
	}
	switch {
	case arm == 0:
		return "x86_64"
	case arm == len(list):
		return "aarch64"
	}
	return ""
}

func isArm(shape string) bool {
	for _, word := range strings.Split(shape, ".") {
		if len(word) == 2 && word[0] == 'A' && word[1] >= '0' && word[1] <= '9' {
			return true
		}
	}
	return false
}

// machine reads the metadata. Any version is kept, what is understood is read.
func machine(text []byte) (m codec.Machine, err error) {
	o, err := parseObject(text)
	if err != nil {
		return m, err
	}
	m.Firmware = firmwares[o.object("externalLaunchOptions").text("firmware")]
	if m.OS = o.text("operatingSystem"); m.OS == "Custom" {
		m.OS = ""
	}
	m.OSVersion = o.text("operatingSystemVersion")
	m.Arch = o.arch()
	m.Extra = map[string]string{extra: o.String()}
	return m, m.Check()
}
