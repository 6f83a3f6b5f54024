// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The file of the cluster's keys. */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "router.h"

static int digit(char sign)
{
	if (sign >= '0' && sign <= '9')
		return sign - '0';
	if (sign >= 'a' && sign <= 'f')
		return sign - 'a' + 10;
	return sign >= 'A' && sign <= 'F' ? sign - 'A' + 10 : -1;
}

static int read_key(const char *digits, uint8_t key[16])
{
	int index, value;

	for (index = 0; index < 32; index++) {
		value = digit(digits[index]);
		if (value < 0)
			return -1;
		key[index / 2] = (uint8_t)(key[index / 2] << 4 | value);
	}
	return 0;
}

int read_keys(const char *path, uint8_t both[2][16])
{
	char bytes[80] = "";
	int file = open(path, O_RDONLY | O_CLOEXEC), result = -1;
	ssize_t size = file < 0 ? -1 : read(file, bytes, sizeof(bytes) - 1);

	if (file >= 0)
		close(file);
	if (size < 0)
		return -1;
	errno = EINVAL;
	if (size == 16) {
		memcpy(both[0], bytes, 16);
		result = 0;
	} else if (size == 32 || size == 33 || size == 65 || size == 66) {
		result = read_key(bytes, both[0]);
	}
	if (size >= 65)
		result |= bytes[32] == '\n' ? read_key(bytes + 33, both[1]) : -1;
	else
		memcpy(both[1], both[0], 16);
	explicit_bzero(bytes, sizeof(bytes));
	return result;
}
