/* SPDX-License-Identifier: BSD-2-Clause */
/* VHD structures: bytes to host structs and back, nothing else. Facts: vhd-format §2, §5–8. */
#ifndef VHD_FMT_H
#define VHD_FMT_H

#include <stdbool.h>
#include <stdint.h>

#define VHD_FOOTER_LEN 512u
#define VHD_HEADER_LEN 1024u
#define VHD_LOCATORS 8
#define VHD_BAT_FREE 0xffffffffu
#define VHD_EPOCH 946684800 /* 2000-01-01 00:00:00 UTC in Unix time */
#define VHD_NAME_UNITS 256

enum vhd_type { VHD_FIXED = 2, VHD_DYNAMIC = 3, VHD_DIFFERENCING = 4 };

enum vhd_platform {
	VHD_NONE = 0,
	VHD_WI2R = 0x57693272,
	VHD_WI2K = 0x5769326b,
	VHD_W2RU = 0x57327275,
	VHD_W2KU = 0x57326b75,
	VHD_MACX = 0x4d616358,
};

struct vhd_footer {
	uint32_t features, version;
	uint64_t data_off;
	uint32_t timestamp;
	char creator[4];
	uint32_t creator_version;
	char creator_os[4];
	uint64_t original_size, size;
	uint16_t cylinders;
	uint8_t heads, sectors;
	uint32_t type;
	uint8_t uuid[16];
	uint8_t saved, hidden;
};

struct vhd_locator {
	uint32_t code, space, len;
	uint64_t off;
};

struct vhd_header {
	uint64_t bat_off;
	uint32_t version, entries, block_size;
	uint8_t parent_uuid[16];
	uint32_t parent_timestamp;
	uint8_t parent_name[VHD_NAME_UNITS * 2]; /* UTF-16BE */
	struct vhd_locator loc[VHD_LOCATORS];
};

enum vhd_verdict {
	VHD_OK,
	VHD_NO_COOKIE,
	VHD_POISONED, /* XenServer: disabled on purpose, §18.3 */
	VHD_BAD_VERSION,
	VHD_BAD_TYPE,
	VHD_BAD_CHECKSUM, /* everything else is plausible */
};

/* F is filled in for VHD_OK and VHD_BAD_CHECKSUM. */
enum vhd_verdict vhd_footer_decode(const uint8_t buf[VHD_FOOTER_LEN], struct vhd_footer *f);
/* A fresh footer, checksum included. */
void vhd_footer_encode(const struct vhd_footer *f, uint8_t buf[VHD_FOOTER_LEN]);
/* The same over a footer that exists: what we do not know of stays. */
void vhd_footer_patch(const struct vhd_footer *f, uint8_t buf[VHD_FOOTER_LEN]);
/* Computes and sets the checksum of an edited one; unknown fields stay. */
void vhd_footer_seal(uint8_t buf[VHD_FOOTER_LEN]);

/* Whether the bits of the bitmaps stand in the other order: version 0.1 of tapdisk (§10). */
bool vhd_bits_reversed(const struct vhd_footer *f);

enum vhd_verdict vhd_header_decode(const uint8_t buf[VHD_HEADER_LEN], struct vhd_header *h);
void vhd_header_encode(const struct vhd_header *h, uint8_t buf[VHD_HEADER_LEN]);
void vhd_header_patch(const struct vhd_header *h, uint8_t buf[VHD_HEADER_LEN]);

const char *vhd_verdict_str(enum vhd_verdict v);

/* The geometry of §6 for SIZE bytes. */
void vhd_geometry(uint64_t size, uint16_t *cylinders, uint8_t *heads, uint8_t *sectors);

/* Blocks, and so BAT entries, that SIZE bytes need (§9). */
uint64_t vhd_blocks(uint64_t size, uint32_t block_size);
/*
 * Whether a BAT of N entries, which fills whole sectors, can lie at OFF (§9): before END, and not
 * over the header at HEAD or the footer in front.
 */
bool vhd_bat_place_ok(uint64_t off, uint64_t n, uint64_t head, uint64_t end);

/* Bytes of a block's bitmap on disk (§10). */
uint32_t vhd_bitmap_len(uint32_t block_size);

#endif
