/* SPDX-License-Identifier: BSD-2-Clause */
/* Facts of the format and small arithmetic, against values from vhd-format and by brute force. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "bytes.h"
#include "cli.h"
#include "vhd_fmt.h"

static int count, failed;

static void ok(bool good, const char *what)
{
	printf("%s %d %s\n", good ? "ok" : "not ok", ++count, what);
	failed |= !good;
}

/* The check values of vhd-format §6. */
static void test_geometry(void)
{
	static const struct {
		uint64_t size;
		unsigned c, h, s;
	} want[] = {
		{4ull << 20, 120, 4, 17},	{10ull << 20, 301, 4, 17},
		{40ull << 20, 963, 5, 17},	{512ull << 20, 1040, 16, 63},
		{1ull << 30, 2080, 16, 63},	{3ull << 30, 6241, 16, 63},
		{32ull << 30, 16448, 16, 255},	{100ull << 30, 51400, 16, 255},
		{127ull << 30, 65278, 16, 255}, {2040ull << 30, 65535, 16, 255},
	};
	bool good = true;

	for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		uint16_t c;
		uint8_t h, s;

		vhd_geometry(want[i].size, &c, &h, &s);
		good &= c == want[i].c && h == want[i].h && s == want[i].s;
	}
	ok(good, "geometry");
}

static void test_bitmap_len(void)
{
	ok(vhd_bitmap_len(512 << 10) == 512 && vhd_bitmap_len(2 << 20) == 512 &&
		   vhd_bitmap_len(4 << 20) == 1024 && vhd_bitmap_len(8 << 20) == 2048 &&
		   vhd_bitmap_len(4096) == 512,
	   "bitmap lengths");
}

/* Every start and length in a random map, against bits looked at one by one. */
static void test_bitmap_run(void)
{
	uint8_t map[64];
	bool good = true, value;

	for (int round = 0; round < 20; round++) {
		for (size_t i = 0; i < sizeof(map); i++)
			map[i] = round % 4 == 0	  ? 0
				 : round % 4 == 1 ? 0xff
				 : rand() % 4	  ? 0xff
						  : (uint8_t)rand();
		for (uint32_t n = 0; n < 512; n++)
			for (uint32_t len = 1; n + len <= 512; len += 1 + len / 7) {
				uint32_t want = 0;

				while (want < len &&
				       bitmap_get(map, n + want) == bitmap_get(map, n))
					want++;
				good &= bitmap_run(map, n, len, &value) == want &&
					value == bitmap_get(map, n);
			}
	}
	ok(good, "bitmap_run");
}

static void test_bitmap_set(void)
{
	bool good = true;

	for (uint32_t n = 0; n < 64; n++)
		for (uint32_t len = 0; n + len <= 64; len++) {
			uint8_t map[8] = {0};

			bitmap_set(map, n, len);
			for (uint32_t i = 0; i < 64; i++)
				good &= bitmap_get(map, i) == (i >= n && i < n + len);
		}
	ok(good, "bitmap_set");
}

static void test_zero(void)
{
	uint8_t buf[100] = {0};
	bool good = bytes_are_zero(buf, 0) && bytes_are_zero(buf, sizeof(buf));

	for (size_t i = 0; i < sizeof(buf); i++) {
		buf[i] = 1;
		good &= !bytes_are_zero(buf, sizeof(buf)) && bytes_are_zero(buf, i);
		buf[i] = 0;
	}
	ok(good, "bytes_are_zero");
}

/* Any flipped bit outside the checksum field is seen; the fields come back as they went. */
static void test_footer(void)
{
	struct vhd_footer f = {.features = 2,
			       .version = 0x10000,
			       .data_off = 512,
			       .size = 40 << 20,
			       .original_size = 40 << 20,
			       .type = VHD_DYNAMIC,
			       .creator = "win",
			       .hidden = 1},
			  g;
	uint8_t buf[VHD_FOOTER_LEN];
	bool good;

	memset(f.uuid, 0xa5, sizeof(f.uuid));
	vhd_footer_encode(&f, buf);
	good = vhd_footer_decode(buf, &g) == VHD_OK && g.size == f.size && g.type == f.type &&
	       g.hidden == 1 && memcmp(g.uuid, f.uuid, 16) == 0;
	for (unsigned bit = 0; bit < VHD_FOOTER_LEN * 8; bit++) {
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
		good &= vhd_footer_decode(buf, &g) != VHD_OK;
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	ok(good, "footer: every flipped bit is seen");
}

static void test_sizes(void)
{
	uint64_t n;

	ok(cli_size("512M", &n) && n == 512ull << 20 && cli_size("2T", &n) && n == 2ull << 40 &&
		   cli_size("77", &n) && n == 77 && !cli_size("", &n) && !cli_size("1MM", &n) &&
		   !cli_size("-1", &n) && !cli_size("17179869184G", &n) && !cli_size("1X", &n),
	   "sizes");
	ok(cli_rate("100mbit", &n) && n == 12500000 && cli_rate("10M", &n) && n == 10u << 20 &&
		   !cli_rate("0", &n) && !cli_rate("mbit", &n),
	   "rates");
}

int main(void)
{
	test_geometry();
	test_bitmap_len();
	test_bitmap_run();
	test_bitmap_set();
	test_zero();
	test_footer();
	test_sizes();
	printf("1..%d\n", count);
	return failed;
}
