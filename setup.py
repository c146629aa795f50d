"Hands the metadata of settings.ini to setuptools; name, Python versions and addresses stand in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

root = Path(__file__).parent
ini = ConfigParser(interpolation=None)
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

setup(
    version=cfg['version'],
    description=cfg['description'],
    long_description=(root/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    license=cfg['license'],
    keywords=cfg['keywords'],
    classifiers=['Programming Language :: Python :: 3',
                 f"Development Status :: {cfg['status']}",
                 f"Intended Audience :: {cfg['audience']}"],
    install_requires=cfg['requirements'].split(),
    extras_require={'train': cfg['train_requirements'].split(),
                    'dev': cfg['train_requirements'].split() + cfg['dev_requirements'].split()},
)
